"""Networks with masked gradients fail the checks, another one passes."""

import warnings

import pytest
import torch
from torch import nn

from callbacks import GradientMaskingChecks
from callbacks.evaluation.gradient_masking_checks import _Noise
from datamodules import Digits
from robust.errors import SettingError
from robust.threat_models import LinfBall
from tests.callbacks.trained import Plain, trainer_with


class Sharp(nn.Module):
    """Logits so large that the softmax is 0 or 1 in float32: the gradient of a correct example is zero."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return 1e4 * self.network(x)


class Quantised(Sharp):
    """Rounds pixels to eight grey values: the gradient is zero."""

    def forward(self, x):
        return self.network((7 * x).round() / 7)


def check(network, epsilon=0.1, **settings):
    """The metrics, and the warnings of failed checks."""
    module = Plain(network, epsilon=epsilon)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = trainer_with(GradientMaskingChecks(**settings))
        metrics = trainer.test(module, Digits(eval_batch_size=100), verbose=False)[0]
    messages = [str(warning.message) for warning in caught]
    return metrics, [message for message in messages if message.startswith("gradient masking: ")]


def test_a_network_without_masking_passes(trained):
    metrics, flagged = check(trained.classifier)
    assert flagged == []
    assert metrics["test/masking/failed_checks"] == 0
    assert metrics["test/masking/samples"] == 100
    start = "test/masking/accuracy/"
    names = {name.removeprefix(start) for name in metrics if name.startswith(start)}
    attacks = {f"{name}/linf_0.1" for name in ("one_step", "pgd", "more_steps", "more_restarts", "noise", "square")}
    assert names == {"clean", *attacks, *(f"pgd/linf_{size}" for size in (0.2, 0.4, 0.8, 1))}
    assert metrics[f"{start}pgd/linf_1"] == 0
    assert metrics[f"{start}pgd/linf_0.1"] < metrics[f"{start}noise/linf_0.1"] <= metrics[f"{start}clean"]


@pytest.mark.parametrize("kind", [Sharp, pytest.param(Quantised, marks=pytest.mark.slow)])
def test_masked_gradients_are_flagged(trained, kind):
    metrics, flagged = check(kind(trained.classifier), max_batches=2)
    print(metrics, *flagged, sep="\n")
    assert metrics["test/masking/samples"] == 200
    assert len(flagged) == metrics["test/masking/failed_checks"] >= 2
    assert any("random search without gradients is stronger than PGD (accuracy 0." in line for line in flagged)
    assert any("in a ball that holds all images the accuracy under PGD is 0." in line for line in flagged)


def test_noise_is_the_worst_of_as_many_images_as_pgd_has_steps(trained, monkeypatch):
    numbers = []
    noise = _Noise.__call__
    monkeypatch.setattr(_Noise, "__call__", lambda self, *given: numbers.append(self.images) or noise(self, *given))
    check(trained.classifier, steps=7, queries=1)
    assert numbers == [7]


def test_each_check_has_its_warning():
    honest = dict.fromkeys(("one_step", "noise", "square"), 0.5)
    honest |= dict.fromkeys(("pgd", "more_steps", "more_restarts"), 0.4)
    honest |= {"pgd/linf_0.5": 0.1, "pgd/linf_1": 0.0}
    checks = GradientMaskingChecks(tolerance=0.01)

    def failures(accuracies):
        names = {name: name if "/" in name else f"{name}/linf_0.25" for name in accuracies}
        values = {f"masking/accuracy/{names[name]}": torch.tensor(value) for name, value in accuracies.items()}
        return list(checks._failures(values))

    assert failures(honest) == []
    for wrong, phrase in (
        ({"one_step": 0.38}, "many steps are weaker"),
        ({"more_steps": 0.42}, "more steps help"),
        ({"more_restarts": 0.42}, "more restarts help"),
        ({"noise": 0.38}, "random noise is stronger than PGD (accuracy 0.380 under noise, 0.400 under pgd)"),
        ({"square": 0.38}, "without gradients"),
        ({"pgd/linf_0.5": 0.42}, "a larger ball helps the defender"),
        ({"pgd/linf_1": 0.02}, "the accuracy under PGD is 0.020, not 0"),
    ):
        (failure,) = failures(honest | wrong)
        assert phrase in failure
        within = {name: value - 0.015 if value in (0.42, 0.02) else value + 0.015 for name, value in wrong.items()}
        assert failures(honest | within) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [("steps", 0), ("restarts", 0), ("queries", 0), ("max_batches", 0), ("tolerance", -0.1)],
)
def test_wrong_settings(setting, value):
    with pytest.raises(SettingError, match=rf"^GradientMaskingChecks.{setting}: got"):
        GradientMaskingChecks(**{setting: value})


def test_noise_returns_a_misclassified_image():
    def bright(x):
        return torch.stack([0.65 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.65], 1)

    torch.manual_seed(0)
    x, y = torch.full((200, 1, 1, 1), 0.5), torch.zeros(200, dtype=torch.long)
    noisy = _Noise(1)(bright, LinfBall(0.2), x, y)
    assert 0.0 < (noisy > 0.65).float().mean() < 0.25
    noisy = _Noise(100)(bright, LinfBall(0.2), x, y)
    assert (noisy > 0.65).all()
