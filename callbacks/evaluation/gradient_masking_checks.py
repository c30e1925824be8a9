"""Checks for gradient masking, which makes gradient-based attacks overrate a network's robustness."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import SumMetric

from callbacks.evaluation.base import Evaluation
from callbacks.evaluation.norm_balls import norm_ball
from lightning_modules.base import RobustClassifier
from robust.attacks import FGSM, PGD, Square
from robust.errors import ZeroGradientError, require
from robust.evaluation import Attack, checked_attack
from robust.metric_names.registry import threat_model_name
from robust.metrics import Accuracy
from robust.progress import tracked
from robust.random import part
from robust.threat_models import LinfBall, ThreatModel

PREFIX = "masking"


@dataclass
class _Noise:
    """The last misclassified one of ``num_samples`` random images, or the last image if none is misclassified."""

    num_samples: int

    def __call__(self, network: nn.Module, threat_model: ThreatModel, x: Tensor, y: Tensor) -> Tensor:
        x_adv, misclassified = x, torch.zeros_like(y, dtype=torch.bool)
        for _ in range(self.num_samples):
            noisy = threat_model.sample(x)
            noisy_misclassified = network(noisy).argmax(1) != y
            replaced = noisy_misclassified | ~misclassified
            x_adv = torch.where(replaced[:, None, None, None], noisy, x_adv)
            misclassified |= noisy_misclassified
        return x_adv


class GradientMaskingChecks(Evaluation):
    """Attacks of known order of strength on the first test batches; warns if the order is violated.

    All attacks search linf balls, and PGD ascends the cross-entropy. Logged, as accuracies in [0, 1] on those
    batches: ``test/masking/accuracy/clean`` and ``test/masking/accuracy/<attack>/linf_<size>``. The attacks are
    ``pgd``; ``one_step`` (FGSM); ``more_steps`` (PGD with five times the steps); ``more_restarts``; ``noise`` (the
    worst of as many random images as PGD has steps); ``square`` (random search without gradients); and ``pgd`` in
    balls of growing sizes up to 1. Logged too: ``test/masking/samples``, the number of images, and
    ``test/masking/failed_checks``, the number of failed checks. Each failed check is one warning:

    - more steps do not raise the accuracy: ``pgd`` <= ``one_step``, ``more_steps`` <= ``pgd``
    - more restarts do not raise it: ``more_restarts`` <= ``pgd``
    - noise is weaker than the attack: ``pgd`` <= ``noise``
    - gradients help: ``square`` is not below the lowest accuracy under PGD
    - a larger ball does not raise it, and in a ball that contains all images it is zero

    The checks find gradients that vanish or mislead; to pass them does not prove robustness. Source: Carlini et al.
    2019, "On evaluating adversarial robustness".

    Args:
        epsilon: radius in (0, 1]; by default that of the module's linf ball.
        steps: steps of PGD, each of size 2.5 / steps times the radius.
        restarts: random starts of ``more_restarts``.
        queries: queries of Square.
        max_batches: maximum number of batches of each process.
        tolerance: fraction of the examples by which a comparison may be violated, e.g. by chance.
        gradient_samples: number of passes over which gradients of networks with noise are averaged.
        seed: seed of the attacks' random draws.

    Raises:
        SettingError: if a setting is out of its range.
    """

    stages = ("test",)

    def __init__(
        self,
        epsilon: float | None = None,
        steps: int = 20,
        restarts: int = 5,
        queries: int = 500,
        max_batches: int = 1,
        tolerance: float = 0.02,
        gradient_samples: int = 1,
        seed: int = 0,
    ) -> None:
        name = "GradientMaskingChecks"
        for setting, count in (
            ("steps", steps),
            ("restarts", restarts),
            ("queries", queries),
            ("max_batches", max_batches),
            ("gradient_samples", gradient_samples),
        ):
            require(count >= 1, f"{name}.{setting}", count, "give at least 1")
        require(epsilon is None or 0 < epsilon <= 1, f"{name}.epsilon", epsilon, "give a radius in (0, 1]")
        require(0 <= tolerance < 1, f"{name}.tolerance", tolerance, "give a fraction of the examples in [0, 1)")
        super().__init__(seed, max_test_batches=max_batches)
        self.epsilon = epsilon
        self.tolerance = tolerance
        pgd = partial(PGD, early_stop=True, num_samples=gradient_samples)
        self.attacks: dict[str, Attack] = {
            "one_step": FGSM(num_samples=gradient_samples),
            "pgd": pgd(steps),
            "more_steps": pgd(5 * steps),
            "more_restarts": pgd(steps, restarts=restarts),
            "noise": _Noise(steps),
            "square": Square(queries, num_samples=gradient_samples),
        }

    def try_out(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Check that there is a ball."""
        norm_ball("GradientMaskingChecks.epsilon", "linf", self.epsilon, module, x)

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:  # noqa: D102
        with self.seeded(x):
            clean = module(x).argmax(1) == y
        self.update(f"{PREFIX}/accuracy/clean", Accuracy, clean)
        self.update(f"{PREFIX}/samples", SumMetric, torch.tensor(len(x), device=x.device))
        epsilon = norm_ball("GradientMaskingChecks.epsilon", "linf", self.epsilon, module, x).epsilon
        cases = [(name, attack, epsilon) for name, attack in self.attacks.items()]
        cases += [("pgd", self.attacks["pgd"], size) for size in _doubled_sizes(epsilon)]
        for index, (name, attack, size) in enumerate(tracked(cases)):
            correct = torch.zeros_like(clean)
            if clean.any():
                with self.seeded(x, index), part(clean):
                    x_adv = _attacked(name, attack, module, LinfBall(size), x[clean], y[clean])
                    correct[clean] = module(x_adv).argmax(1) == y[clean]
            self.note_misclassified(module, LinfBall(size), ~correct, f"{name} of GradientMaskingChecks")
            self.update(f"{PREFIX}/accuracy/{name}/{threat_model_name('linf', size)}", Accuracy, correct)

    def compute(self, module: RobustClassifier) -> dict[str, Tensor]:
        """The metrics, and the number of failed checks; warns for each."""
        values = super().compute(module)
        failures = list(self._failures(values))
        for failure in failures:
            rank_zero_warn(f"gradient masking: {failure}; PGD overrates this network, take APGD or AutoAttack too")
        return values | {f"{PREFIX}/failed_checks": torch.tensor(float(len(failures)), device=module.device)}

    def _failures(self, values: dict[str, Tensor]) -> Iterator[str]:
        """Describe each failed check."""
        under_pgd = [name for name in values if name.startswith(f"{PREFIX}/accuracy/pgd/")]  # the balls grow
        ball = under_pgd[0].rpartition("/")[2]
        accuracy = {name: float(values[f"{PREFIX}/accuracy/{name}/{ball}"]) for name in self.attacks}
        larger = {f"pgd in {name.rpartition('/')[2]}": float(values[name]) for name in under_pgd[1:]}
        accuracy, growing = accuracy | larger, ["pgd", *larger]
        whitebox = min(("pgd", "more_steps", "more_restarts"), key=lambda name: accuracy[name])
        checks = [
            ("pgd", "one_step", "many steps are weaker than one"),
            ("more_steps", "pgd", "more steps help the defender"),
            ("more_restarts", "pgd", "more restarts help the defender"),
            ("pgd", "noise", "random noise is stronger than PGD"),
            (whitebox, "square", "random search without gradients is stronger than PGD"),
            *((large, small, "a larger ball helps the defender") for small, large in pairwise(growing)),
        ]
        for lower, higher, what in checks:  # lower and higher: where the accuracy should be lower and higher
            if accuracy[lower] > accuracy[higher] + self.tolerance:
                yield f"{what} (accuracy {accuracy[higher]:.3f} under {higher}, {accuracy[lower]:.3f} under {lower})"
        if (remaining := accuracy[growing[-1]]) > self.tolerance:
            yield f"in a ball that holds all images the accuracy under PGD is {remaining:.3f}, not 0"


def _attacked(name: str, attack: Attack, module: nn.Module, ball: LinfBall, x: Tensor, y: Tensor) -> Tensor:
    """The attack's images (B, C, H, W); ``x`` itself if the gradient is zero, which fails the checks."""
    try:
        return checked_attack(name, attack, module, ball, x, y)
    except ZeroGradientError:
        return x


def _doubled_sizes(epsilon: float) -> list[float]:
    """Repeatedly doubled sizes above ``epsilon``, the last of them 1."""
    sizes = []
    while epsilon < 1:
        epsilon = min(2 * epsilon, 1.0)
        sizes.append(epsilon)
    return sizes
