"""Each config of a method runs fit and test for some steps, on the embedded digits or on small made-up files."""

import numpy as np
import pytest
import torch

import train
from cli.composition import composed
from robust.networks import Autoencoder
from tests.resolved_configs import CONFIGS, EXPERIMENTS, QUICK
from tests.testers import assert_registered, results_in

PARTS = [
    ("mng_ac/digits.yaml", "mng_ac/parts/sat.yaml"),
    ("mng_ac/cifar10.yaml", "mng_ac/parts/sat_ac.yaml"),
    ("contextual_budgets/mnist.yaml", "contextual_budgets/parts/appendix_c.yaml"),
    ("contextual_budgets/mnist.yaml", "contextual_budgets/parts/epsilon_0.6.yaml"),
    ("contextual_budgets/mnist.yaml", "contextual_budgets/parts/epsilon_0.8.yaml"),
    ("contextual_budgets/mnist.yaml", "contextual_budgets/parts/epsilon_0.8_range.yaml"),
    ("contextual_budgets/mnist.yaml", "contextual_budgets/parts/contextual.yaml"),
    *(
        ("contextual_budgets/mnist.yaml", f"contextual_budgets/parts/{loss}.yaml")
        for loss in ("sabr", "mtl_ibp", "cc_ibp")
    ),
    ("contextual_budgets/watermarked_mnist.yaml", "contextual_budgets/parts/epsilon_0.3.yaml"),
    ("contextual_budgets/watermarked_mnist.yaml", "contextual_budgets/parts/uniform.yaml"),
    ("contextual_budgets/cifar10.yaml", "contextual_budgets/parts/epsilon_16_255.yaml"),
    ("contextual_budgets/cifar10.yaml", "contextual_budgets/parts/epsilon_32_255.yaml"),
    *(
        (f"adversarial_training/multi_norm_{path.stem[:-3]}.yaml", str(path.relative_to(CONFIGS)))
        for path in sorted((CONFIGS / "adversarial_training" / "parts").glob("*.yaml"))
    ),
]
NOISY = ("Learn2Perturb", "ParametricNoiseInjection", "AdversarialBNN")
FIGURES = {
    "CertifiedEvaluation": "test/certified_accuracy/linf_",
    "AdversarialEvaluation": "test/accuracy/pgd/",
    "RobustnessScore": "test/robustness_score/r2",
}


def name_of(part):
    """Name of the class of a setting, which is its name or a mapping; empty if there is none."""
    return (part["class_path"] if isinstance(part, dict) else part or "").split(".")[-1]


def first_callback(config):
    """Name of the first callback; None where there is none."""
    callbacks = config["trainer"].get("callbacks")
    return callbacks and name_of(callbacks[0])


def quicker(config, folder):
    """Arguments that leave out what takes long in a method's config."""
    arguments, model = [], config["model"]["init_args"]
    first = first_callback(config)
    steps = 1 if large(config) else 2
    if first == "AdversarialEvaluation":
        pgd = f"{{attack: {{class_path: robust.attacks.PGD, init_args: {{steps: {steps}}}}}}}"
        arguments.append(f"--trainer.callbacks.attacks={{pgd: {pgd}}}")
        if name_of(config["model"]) in NOISY:
            arguments += ["--trainer.callbacks.num_samples=2", "--trainer.callbacks.gradient_samples=2"]
    if first == "RobustnessScore":
        arguments.append("--trainer.callbacks.attacks={fgsm: robust.attacks.FGSMGrid}")
    attacks = ("attack", "attack_l1", "attack_l2", "attack_linf")
    arguments += [f"--model.{attack}.steps={steps}" for attack in attacks if model.get(attack)]
    classifier = name_of(model.get("classifier"))
    if classifier.endswith("WideResNet"):
        arguments += ["--model.classifier.depth=10", "--model.classifier.width=1"]
    if classifier.endswith("DMLarge"):  # one batch before the ramp, one on it, and one small checkpoint
        arguments += ["--trainer.max_epochs=1", "--epsilon_schedule.start_epoch=1"]
        arguments += ["--checkpoint.save_weights_only=true", "--checkpoint.save_last=false"]
    if classifier.endswith(("ResNet18", "WideResNet")):
        arguments += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
        arguments += ["--checkpoint.save_weights_only=true", "--checkpoint.save_last=false"]
    if "replays" in model:
        arguments.append("--model.replays=2")
    if "outer" in model:
        arguments.append("--model.outer=2")
    if "autoencoder" in model:
        arguments.append("--model.autoencoder.width=2")
    if "autoencoder_checkpoint" in model:
        path = folder / "autoencoder.ckpt"
        network = Autoencoder(**(model["autoencoder"]["init_args"] | {"width": 2}))
        torch.save({"state_dict": {f"autoencoder.{name}": w for name, w in network.state_dict().items()}}, path)
        arguments.append(f"--model.autoencoder_checkpoint={path}")
    if name_of(config["data"]) == "TinyImageNet":
        arguments.append("--model.classifier.num_classes=4")
    return arguments


def large(config):
    """Whether a pass through its network takes long."""
    classifier = name_of(config["model"]["init_args"].get("classifier"))
    return classifier.endswith(("DMLarge", "ResNet18", "WideResNet"))


@pytest.mark.thorough_but(
    "quickstart.yaml-None",
    "contextual_budgets/digits.yaml-None",
    "weighted_minimax/digits.yaml-None",
    "learn2perturb/digits.yaml-None",
    "mng_ac/digits.yaml-None",
    "robustness_score/digits.yaml-None",
    "on_manifold_robustness/digits.yaml-None",
)
@pytest.mark.filterwarnings("ignore:data.verify_checksums", "ignore:epsilon_schedule.length")
@pytest.mark.parametrize(
    ("name", "part"),
    [
        *(pytest.param(name, None, marks=[] if name in QUICK else [pytest.mark.slow]) for name in EXPERIMENTS),
        *(pytest.param(*both, marks=pytest.mark.slow) for both in PARTS),
    ],
)
def test_runs_from_its_config(name, part, tmp_path, written):
    config = composed({"config": name}, CONFIGS)
    nested = "labelled." if name_of(config["data"]) == "SemiSupervised" else ""
    size = 2 if large(config) else 4
    arguments = [
        "fit",
        f"--config={CONFIGS / name}",
        *([] if part is None else [f"--config={CONFIGS / part}"]),
        f"--data.{nested}batch_size={size}",
        f"--data.{nested}eval_batch_size={size // 2}",
        "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1",
        "--trainer.limit_test_batches=1",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--test_after_fit=true",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    if name_of(config["data"]) == "SemiSupervised":
        pseudo_labelled = tmp_path / "pseudo_labelled.npz"
        np.savez(pseudo_labelled, image=np.zeros((8, 3, 32, 32), np.uint8), label=np.arange(8))
        arguments += [f"--data.pseudo_labelled={pseudo_labelled}", f"--data.labelled.root={written}"]
        arguments.append("--data.labelled.verify_checksums=false")
    elif name_of(config["data"]) not in ("Digits", "WatermarkedDigits", "DoubledDigits"):
        arguments += [f"--data.root={written}", "--data.verify_checksums=false"]
    arguments += quicker(config, tmp_path)
    train.main(arguments)
    (record,) = tmp_path.glob("lightning_logs/*/results.json")
    figures = results_in(record)["metrics"]
    assert_registered(figures)
    if first_callback(config) is None:  # an autoencoder, which classifies nothing
        assert figures["test/reconstruction"] > 0
        return
    assert 0 <= figures["test/accuracy/clean"] <= 1
    expected = FIGURES[first_callback(config)]
    assert any(figure.startswith(expected) for figure in figures)


@pytest.mark.thorough
def test_the_sweep_measures_validation_images_alone(tmp_path):
    folder = CONFIGS / "robustness_score"
    for weight in ("0.01", "0.1"):
        arguments = ["fit", f"--config={folder / 'digits.yaml'}", f"--config={folder / 'sweep.yaml'}"]
        arguments += ["--trainer.max_epochs=6", "--trainer.limit_train_batches=1", "--trainer.log_every_n_steps=1"]
        arguments += ["--data.eval_batch_size=16"]
        arguments += [f"--model.score_weight={weight}", f"--trainer.default_root_dir={tmp_path / weight}"]
        arguments.append("--trainer.callbacks.attacks={fgsm: robust.attacks.FGSMGrid}")
        train.main([*arguments, "--trainer.enable_progress_bar=false"])
        (record,) = (tmp_path / weight).rglob("results.json")
        figures = results_in(record)
        assert {"val/robustness_score/r2", "val/accuracy/clean", "train/flip_rate"} <= figures["metrics"].keys()
        assert figures["metrics"]["val/robustness_score/r2/samples"] == 16
        assert not any(name.startswith("test/") for name in figures["metrics"])
        assert figures["config"]["model"]["init_args"]["score_weight"] == float(weight)
