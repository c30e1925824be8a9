"""Each method that trains on attacks learns: on Digits, against PGD, it is far above the undefended network."""

import pytest

import train
from tests.testers import ROOT, results_in

METHODS = [
    "adversarial_training",
    "trades",
    "free_adversarial_training",
    "yopo",
    "instance_adaptive_training",
    "weighted_minimax",
]
STOCHASTIC = ["learn2perturb", "parametric_noise_injection"]
STOCHASTIC += [pytest.param(name, marks=pytest.mark.slow) for name in ("mixed_adversarial_training", "adversarial_bnn")]


def robust_accuracy(method, folder, *settings, figure="pgd"):
    arguments = [f"--config={ROOT / 'configs' / method / 'digits.yaml'}", "--trainer.max_epochs=10", *settings]
    arguments += ["--trainer.callbacks.every_n_epochs=10", "--trainer.enable_progress_bar=false"]
    train.main(["fit", *arguments, f"--trainer.default_root_dir={folder}"])
    (record,) = folder.glob("lightning_logs/*/results.json")
    figures = results_in(record)["metrics"]
    assert figures["test/accuracy/pgd"] <= figures["test/accuracy/clean"]
    return figures[f"test/accuracy/{figure}"]


@pytest.fixture(scope="module")
def undefended(tmp_path_factory):
    return robust_accuracy("standard_training", tmp_path_factory.mktemp("standard"))


@pytest.mark.parametrize("method", METHODS)
def test_learns(method, tmp_path, undefended):
    cheaper = [] if method in ("free_adversarial_training", "yopo") else ["--model.attack.steps=5"]
    assert robust_accuracy(method, tmp_path, *cheaper) > undefended + 0.3


@pytest.mark.parametrize("method", STOCHASTIC)
def test_stochastic_methods_and_their_baseline_learn(method, tmp_path, undefended):
    """Whatever the gradient: of one draw, the mean of several, of the network without noise."""
    pgd = "{pgd: {attack: {class_path: robust.attacks.PGD, init_args: {steps: 10}}}}"
    few = ["--trainer.max_epochs=6", "--model.attack.steps=3", f"--trainer.callbacks.attacks={pgd}"]
    noisy = method != "mixed_adversarial_training"
    few += ["--trainer.callbacks.eot_samples=5"] if noisy else []
    figure = "pgd/worst" if noisy else "pgd"
    assert robust_accuracy(method, tmp_path, *few, figure=figure) > undefended + 0.15
