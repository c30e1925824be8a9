"""A residual network with batch normalisation learns budgets and certificates on the digits, no verifier named."""

import pytest

import train
from tests.command_line import QUICKSTART
from tests.testers import results_in

SETTINGS = [
    *QUICKSTART,
    "--model.classifier=robust.networks.ResNetB",
    "--model.classifier.init_args.image_shape=[1, 28, 28]",
    "--model.classifier.init_args.width=4",
    "--model.classifier.init_args.batch_norm=true",
    "--model.interval_initialisation=true",
    "--model.interval_weight=0.5",
    "--model.epsilon=0.05",
    "--data.batch_size=64",
    "--data.eval_batch_size=100",
    "--epsilon_schedule.start_epoch=2",
    "--epsilon_schedule.length=3",
    "--trainer.max_epochs=6",
    "--trainer.limit_test_batches=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.callbacks=[{class_path: CertifiedEvaluation, init_args: {every_n_epochs: 100, pgd_steps: 0}}]",
]


def metrics_of(folder, *settings):
    train.main(["fit", *SETTINGS, f"--trainer.default_root_dir={folder}", *settings])
    (record,) = folder.rglob("results.json")
    return results_in(record)["metrics"]


@pytest.mark.slow
def test_certified_accuracy_in_learned_budgets_rises_far_above_that_of_untrained_weights(tmp_path, caplog):
    untrained = metrics_of(tmp_path / "untrained", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    trained = metrics_of(tmp_path / "trained")
    name = "test/certified_accuracy/own_budgets"
    assert untrained[name] < 0.2
    assert trained[name] > untrained[name] + 0.4
    assert trained["test/accuracy/clean"] >= trained[name]
    assert "Verifier: FeedForwardVerifier, since it bounds all operations" in caplog.text
