"""Each config of a method runs fit and test for some steps, on the embedded digits or on small made-up files."""

import json
from pathlib import Path

import pytest
import yaml

import train

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name not in ("data", "evaluation")  # parts, tested behind a method
)


@pytest.mark.filterwarnings("ignore:data.verify_checksums")
@pytest.mark.parametrize("name", METHODS)
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
    if config["trainer"]["callbacks"][0]["class_path"] == "AdversarialEvaluation":
        arguments.append(
            "--trainer.callbacks.attacks={pgd: {attack: {class_path: robust.attacks.PGD, init_args: {steps: 2}}}}"
        )
    if "attack" in config["model"]["init_args"]:
        arguments.append("--model.attack.steps=2")
    if config["data"]["class_path"] == "TinyImageNet":
        arguments.append("--model.classifier.num_classes=4")
    train.main(arguments)
    (record,) = tmp_path.glob("lightning_logs/*/results.json")
    figures = json.loads(record.read_text())["metrics"]
    assert 0 <= figures["test/clean_error"] <= 1
    evaluation = config["trainer"]["callbacks"][0]["class_path"]
    expected = {"CertifiedEvaluation": "verified_error/uniform", "AdversarialEvaluation": "accuracy/pgd"}[evaluation]
    assert f"test/{expected}" in figures
