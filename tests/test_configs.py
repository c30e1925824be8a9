"""Each config of a method runs fit and test for some steps, on the embedded digits or on small made-up files."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import train
from robust.networks import Autoencoder

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name not in ("data", "evaluation") and path.stem != "sweep"  # parts, tested behind a method
)


SCORES = ("robustness_score/", "cross_lipschitz/", "wasserstein_autoencoder/", "on_manifold_")
ALIKE = [name for name in METHODS if name.startswith(SCORES) and name.endswith("_short.yaml")]  # but for the schedule
FIGURES = {
    "CertifiedEvaluation": "test/verified_error/uniform",
    "AdversarialEvaluation": "test/accuracy/pgd",
    "RobustnessScore": "test/r2",
}


def quicker(config, folder):
    """Arguments that leave out what takes long in a method's config."""
    arguments, model = [], config["model"]["init_args"]
    callbacks = config["trainer"].get("callbacks", [{"class_path": None}])
    if callbacks[0]["class_path"] == "AdversarialEvaluation":
        arguments.append(
            "--trainer.callbacks.attacks={pgd: {attack: {class_path: robust.attacks.PGD, init_args: {steps: 2}}}}"
        )
    if callbacks[0]["class_path"] == "RobustnessScore":
        arguments.append("--trainer.callbacks.attacks={fgsm: robust.attacks.FGSMGrid}")
    if "attack" in model:
        arguments.append("--model.attack.steps=2")
    if "autoencoder" in model:
        arguments.append("--model.autoencoder.width=2")
    if "autoencoder_checkpoint" in model:
        path = folder / "autoencoder.ckpt"
        network = Autoencoder(**(model["autoencoder"]["init_args"] | {"width": 2}))
        torch.save({"state_dict": {f"autoencoder.{name}": w for name, w in network.state_dict().items()}}, path)
        arguments.append(f"--model.autoencoder_checkpoint={path}")
    if config["data"]["class_path"] == "TinyImageNet":
        arguments.append("--model.classifier.num_classes=4")
    return arguments


@pytest.mark.filterwarnings("ignore:data.verify_checksums")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in METHODS]
)
def test_runs_from_its_config(name, tmp_path, written):
    config = yaml.safe_load((CONFIGS / name).read_text())
    arguments = [
        "fit",
        f"--config={CONFIGS / name}",
        "--data.batch_size=4",
        "--data.eval_batch_size=4",
        "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1",
        "--trainer.limit_test_batches=1",
        "--trainer.enable_progress_bar=false",
        "--test_after_fit=true",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    if config["data"]["class_path"] not in ("Digits", "WatermarkedDigits", "DoubledDigits"):
        arguments += [f"--data.root={written}", "--data.verify_checksums=false"]
    arguments += quicker(config, tmp_path)
    train.main(arguments)
    (record,) = tmp_path.glob("lightning_logs/*/results.json")
    figures = json.loads(record.read_text())["metrics"]
    if "callbacks" not in config["trainer"]:  # an autoencoder, which classifies nothing
        assert figures["test/reconstruction"] > 0
        return
    assert 0 <= figures["test/clean_error"] <= 1
    assert FIGURES[config["trainer"]["callbacks"][0]["class_path"]] in figures


def test_the_sweep_measures_validation_images_alone(tmp_path):
    folder = CONFIGS / "robustness_score"
    for weight in ("0.01", "0.1"):
        arguments = ["fit", f"--config={folder / 'digits.yaml'}", f"--config={folder / 'sweep.yaml'}"]
        arguments += ["--trainer.max_epochs=6", "--trainer.limit_train_batches=1", "--data.eval_batch_size=16"]
        arguments += [f"--model.score_weight={weight}", f"--trainer.default_root_dir={tmp_path / weight}"]
        arguments.append("--trainer.callbacks.attacks={fgsm: robust.attacks.FGSMGrid}")
        train.main([*arguments, "--trainer.enable_progress_bar=false"])
        (record,) = (tmp_path / weight).rglob("results.json")
        figures = json.loads(record.read_text())
        assert {"val/r2", "val/clean_error", "train/flip_rate"} <= figures["metrics"].keys()
        assert figures["metrics"]["val/r2_samples"] == 16
        assert not any(name.startswith("test/") for name in figures["metrics"])
        assert figures["config"]["model"]["init_args"]["score_weight"] == float(weight)
