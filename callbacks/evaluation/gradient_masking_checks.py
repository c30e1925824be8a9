"""Whether the attacks that a network withstands were only misled: the checks that the field uses."""

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
from robust.metrics import Accuracy
from robust.random import part
from robust.threat_models import LinfBall, ThreatModel


@dataclass
class _Noise:
    """The last of so many random images that is misclassified, else the last of all."""

    draws: int

    def __call__(self, network: nn.Module, threat_model: ThreatModel, x: Tensor, y: Tensor) -> Tensor:
        x_adv, wrong = x, torch.zeros_like(y, dtype=torch.bool)
        for _ in range(self.draws):
            noisy = threat_model.sample(x)
            now = network(noisy).argmax(1) != y
            x_adv = torch.where((now | ~wrong)[:, None, None, None], noisy, x_adv)
            wrong |= now
        return x_adv


class GradientMaskingChecks(Evaluation):
    """Attacks the first test batches in ways of known order, and warns where it is not kept (Carlini et al. 2019).

    All in linf balls, PGD on the cross-entropy. Logged under ``test/masking/``, as accuracies in [0, 1] on those
    batches: ``clean``; ``pgd``; ``one_step`` (FGSM); ``more_steps`` (PGD of five times as many); ``more_restarts``;
    ``noise`` (the worst of as many random draws as PGD has steps); ``square`` (random search without gradients); and
    ``pgd/epsilon_<size>`` for growing sizes up to 1; beside them ``samples`` and ``failed_checks``, their number.
    Each check that fails is one warning:

    - more steps do not help the defender: ``pgd`` <= ``one_step``, ``more_steps`` <= ``pgd``
    - nor do more restarts: ``more_restarts`` <= ``pgd``
    - noise is weaker than the attack: ``pgd`` <= ``noise``
    - gradients help: ``square`` is not below the lowest of PGD's
    - nor does a larger ball help the defender, and in one that holds all images the accuracy is zero

    They find gradients that vanish or mislead; passing them is no proof of robustness.

    Args:
        epsilon: radius in (0, 1]; by default that of the module's linf ball.
        steps: of PGD, each 2.5 / steps of the radius.
        restarts: random starts of ``more_restarts``.
        queries: of Square.
        max_batches: number of batches of each process.
        tolerance: fraction of the examples by which a comparison may be off, chance included.
        eot_samples: passes over which networks that draw random numbers are attacked.
        seed: of the attacks' random draws.

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
        eot_samples: int = 1,
        seed: int = 0,
    ) -> None:
        name = "GradientMaskingChecks"
        for setting, count in (
            ("steps", steps),
            ("restarts", restarts),
            ("queries", queries),
            ("max_batches", max_batches),
            ("eot_samples", eot_samples),
        ):
            require(count >= 1, f"{name}.{setting}", count, "give at least 1")
        require(epsilon is None or 0 < epsilon <= 1, f"{name}.epsilon", epsilon, "give a radius in (0, 1]")
        require(0 <= tolerance < 1, f"{name}.tolerance", tolerance, "give a fraction of the examples in [0, 1)")
        super().__init__(seed, max_test_batches=max_batches)
        self.epsilon = epsilon
        self.tolerance = tolerance
        pgd = partial(PGD, early_stop=True, eot_samples=eot_samples)
        self.attacks: dict[str, Attack] = {
            "one_step": FGSM(eot_samples=eot_samples),
            "pgd": pgd(steps),
            "more_steps": pgd(5 * steps),
            "more_restarts": pgd(steps, restarts=restarts),
            "noise": _Noise(steps),
            "square": Square(queries, eot_samples=eot_samples),
        }

    def try_out(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Find the ball."""
        norm_ball("GradientMaskingChecks.epsilon", "linf", self.epsilon, module, x)

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:  # noqa: D102
        with self.drawing(x):
            clean = module(x).argmax(1) == y
        self.update("clean", Accuracy, clean)
        self.update("samples", SumMetric, torch.tensor(len(x), device=x.device))
        epsilon = norm_ball("GradientMaskingChecks.epsilon", "linf", self.epsilon, module, x).epsilon
        cases = [(name, attack, epsilon) for name, attack in self.attacks.items()]
        cases += [(_growing(size), self.attacks["pgd"], size) for size in _sizes(epsilon)]
        for index, (name, attack, size) in enumerate(cases):
            correct = torch.zeros_like(clean)
            if clean.any():
                with self.drawing(x, index), part(clean):
                    x_adv = _attacked(name, attack, module, LinfBall(size), x[clean], y[clean])
                    correct[clean] = module(x_adv).argmax(1) == y[clean]
            self.note_misclassified(module, LinfBall(size), ~correct, f"{name} of GradientMaskingChecks")
            self.update(name, Accuracy, correct)

    def compute(self, module: RobustClassifier) -> dict[str, Tensor]:
        """The metrics, and the number of failed checks; warns of each."""
        values = super().compute(module)
        failures = list(self._failures({name: float(value) for name, value in values.items()}))
        for failure in failures:
            rank_zero_warn(f"gradient masking: {failure}; PGD overrates this network, take APGD or AutoAttack too")
        values["failed_checks"] = torch.tensor(float(len(failures)), device=values["clean"].device)
        return {f"masking/{name}": value for name, value in values.items()}

    def _failures(self, accuracy: dict[str, float]) -> Iterator[str]:
        """What to say of each check that fails."""
        whitebox = min(("pgd", "more_steps", "more_restarts"), key=lambda name: accuracy[name])
        growing = ["pgd", *(name for name in accuracy if name.startswith("pgd/"))]
        checks = [
            ("pgd", "one_step", "many steps are weaker than one"),
            ("more_steps", "pgd", "more steps help the defender"),
            ("more_restarts", "pgd", "more restarts help the defender"),
            ("pgd", "noise", "random noise is stronger than PGD"),
            (whitebox, "square", "random search without gradients is stronger than PGD"),
            *((large, small, "a larger ball helps the defender") for small, large in pairwise(growing)),
        ]
        for lower, higher, what in checks:  # those whose accuracy should be the lower and the higher
            if accuracy[lower] > accuracy[higher] + self.tolerance:
                yield f"{what} (accuracy {accuracy[higher]:.3f} under {higher}, {accuracy[lower]:.3f} under {lower})"
        if (remaining := accuracy[growing[-1]]) > self.tolerance:
            yield f"in a ball that holds all images the accuracy under PGD is {remaining:.3f}, not 0"


def _attacked(name: str, attack: Attack, module: nn.Module, ball: LinfBall, x: Tensor, y: Tensor) -> Tensor:
    """The attack's images (B, C, H, W); ``x`` itself where its gradient is zero, which the checks then find."""
    try:
        return checked_attack(name, attack, module, ball, x, y)
    except ZeroGradientError:
        return x


def _sizes(epsilon: float) -> list[float]:
    """Twice the size, and so on, up to 1."""
    sizes = []
    while epsilon < 1:
        epsilon = min(2 * epsilon, 1.0)
        sizes.append(epsilon)
    return sizes


def _growing(size: float) -> str:
    return f"pgd/epsilon_{size:.3g}"
