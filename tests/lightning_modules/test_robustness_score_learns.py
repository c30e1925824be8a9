"""Training for R2 raises R2, on real digits."""

import pytest

import train
from tests.testers import ROOT, results_in


def trained(name, folder, *settings):
    """Test metrics of a config for Digits."""
    arguments = ["fit", f"--config={ROOT / 'configs' / 'robustness_score' / name}.yaml", *settings]
    train.main([*arguments, "--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={folder}"])
    (record,) = folder.glob("lightning_logs/*/results.json")
    return results_in(record)["metrics"]


QUICK = [
    "--model.classifier=robust.networks.DMSmall",
    "--trainer.max_epochs=6",
    "--data.eval_batch_size=100",
    "--trainer.callbacks.max_test_batches=2",
    "--trainer.callbacks.attacks={bg: robust.attacks.LinearizedBoundary}",
]
INVERSE = ["--model.form=inverse", "--model.score_weight=0.3", "--model.adversarial_weight=60"]


@pytest.mark.slow
def test_learns(tmp_path):
    plain = trained("none_digits", tmp_path / "none", *QUICK)
    robust = trained("digits", tmp_path / "r2", *QUICK, *INVERSE)
    assert robust["test/accuracy/clean"] > 0.88  # 0.94 to 0.96 of 200 images: a standard error of 0.017
    assert robust["train/flip_rate"] > 0.2, "the generator has given up"
    assert (
        robust["test/robustness_score/r2"] > 1.05 * plain["test/robustness_score/r2"]
    )  # 1.14 and 1.18 times with two seeds


@pytest.mark.slow
def test_the_unchanged_digits_config(tmp_path):
    plain = trained("none_digits", tmp_path / "none")
    robust = trained("digits", tmp_path / "r2")
    assert robust["test/accuracy/clean"] > plain["test/accuracy/clean"] - 0.02
    assert robust["test/robustness_score/r2"] > 1.1 * plain["test/robustness_score/r2"]
