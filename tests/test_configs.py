"""Each config of a method runs fit and test for some steps, on the embedded digits or on small made-up files."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import train

CONFIGS = Path(__file__).parents[1] / "configs"
METHODS = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name not in ("data", "evaluation", "parts")  # tested behind a method
)
PARTS = [
    ("mng_ac/digits.yaml", "mng_ac/parts/sat.yaml"),
    ("mng_ac/cifar10.yaml", "mng_ac/parts/sat_ac.yaml"),
    *(
        (f"adversarial_training/multi_norm_{path.stem[:-3]}.yaml", str(path.relative_to(CONFIGS)))
        for path in sorted((CONFIGS / "adversarial_training" / "parts").glob("*.yaml"))
    ),
]


@pytest.mark.filterwarnings("ignore:data.verify_checksums")
@pytest.mark.parametrize(
    ("name", "part"),
    [*((name, None) for name in METHODS), *(pytest.param(*both, marks=pytest.mark.slow) for both in PARTS)],
)
def test_runs_from_its_config(name, part, tmp_path, written):
    config = yaml.safe_load((CONFIGS / name).read_text())
    nested = "labelled." if config["data"]["class_path"] == "SemiSupervised" else ""
    sizes = [f"{nested}batch_size", f"{nested}eval_batch_size"]
    arguments = [
        "fit",
        f"--config={CONFIGS / name}",
        *([] if part is None else [f"--config={CONFIGS / part}"]),
        *(f"--data.{size}=4" for size in sizes),
        "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1",
        "--trainer.limit_test_batches=1",
        "--trainer.enable_progress_bar=false",
        "--test_after_fit=true",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    if config["data"]["class_path"] == "SemiSupervised":
        pseudo_labelled = tmp_path / "pseudo_labelled.npz"
        np.savez(pseudo_labelled, image=np.zeros((8, 3, 32, 32), np.uint8), label=np.arange(8))
        arguments += [f"--data.pseudo_labelled={pseudo_labelled}", f"--data.labelled.root={written}"]
        arguments.append("--data.labelled.verify_checksums=false")
    elif config["data"]["class_path"] not in ("Digits", "WatermarkedDigits", "DoubledDigits"):
        arguments += [f"--data.root={written}", "--data.verify_checksums=false"]
    if config["trainer"]["callbacks"][0]["class_path"] == "AdversarialEvaluation":
        arguments.append(
            "--trainer.callbacks.attacks={pgd: {attack: {class_path: robust.attacks.PGD, init_args: {steps: 2}}}}"
        )
    for attack in ("attack", "attack_linf", "attack_l2", "attack_l1"):
        if attack in config["model"]["init_args"]:
            arguments.append(f"--model.{attack}.steps=2")
    if config["model"]["init_args"]["classifier"]["class_path"].endswith("WideResNet"):
        arguments += ["--model.classifier.depth=10", "--model.classifier.width=1"]
    if config["model"]["init_args"]["classifier"]["class_path"].endswith("PreActResNet18"):
        arguments += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    if config["data"]["class_path"] == "TinyImageNet":
        arguments.append("--model.classifier.num_classes=4")
    train.main(arguments)
    (record,) = tmp_path.glob("lightning_logs/*/results.json")
    figures = json.loads(record.read_text())["metrics"]
    assert 0 <= figures["test/clean_error"] <= 1
    evaluation = config["trainer"]["callbacks"][0]["class_path"]
    expected = {"CertifiedEvaluation": "verified_error/uniform", "AdversarialEvaluation": "accuracy/pgd"}[evaluation]
    assert any(figure.startswith(f"test/{expected}") for figure in figures)
