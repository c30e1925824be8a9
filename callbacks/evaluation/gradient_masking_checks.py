"""Checks for gradient masking, by which gradient-based attacks overestimate a network's robustness."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import SumMetric

from callbacks.evaluation.attack_settings import named_ball, norm_ball
from callbacks.evaluation.base import Evaluation
from callbacks.evaluation.saved_rows import Rows
from lightning_modules.base import RobustClassifier
from robust.attacks import FGSM, PGD, Square
from robust.errors import ZeroGradientError, require
from robust.evaluation import Attack, checked_attack, judge_repeatedly, with_expectation
from robust.losses import margin
from robust.metric_names.registry import threat_model_name
from robust.metrics import Accuracy
from robust.progress import tracked
from robust.random import part
from robust.threat_models import Norm, ThreatModel, ball

PREFIX = "masking"
_SQUARE = "random search without gradients is stronger than PGD"


@dataclass
class _Noise:
    """Attack that returns, of ``images`` random images of the threat model, the one with the highest loss."""

    images: int

    def __call__(self, network: nn.Module, threat_model: ThreatModel, x: Tensor, y: Tensor) -> Tensor:
        x_adv, highest = x, torch.full_like(y, -torch.inf, dtype=x.dtype)
        for _ in range(self.images):
            noisy = threat_model.sample(x)
            value = margin(network(noisy), y)
            x_adv = torch.where((value > highest)[:, None, None, None], noisy, x_adv)
            highest = torch.maximum(value, highest)
        return x_adv


class GradientMaskingChecks(Evaluation):
    """Attacks of known order of strength on the first test batches; warns if the order is violated.

    All attacks search balls of one norm, or of each of several norms. PGD ascends the cross-entropy. The accuracies, in
    [0, 1], are logged as ``test/masking/accuracy/clean`` and ``test/masking/accuracy/<attack>/<norm>_<size>``. The
    attacks are ``pgd``; ``one_step`` (FGSM); ``more_steps`` (PGD with five times the steps); ``more_restarts``;
    ``noise`` (the worst of as many random images as PGD has steps); ``square`` (random search without gradients); and
    ``pgd`` in balls of growing sizes, the last of which holds all images. ``test/masking/samples`` is the number of
    images, and ``test/masking/failed_checks`` the number of failed checks. Each failed check gives one warning:

    - more steps do not raise the accuracy: ``pgd`` <= ``one_step``, ``more_steps`` <= ``pgd``
    - more restarts do not raise it: ``more_restarts`` <= ``pgd``
    - noise is weaker than the attack: ``pgd`` <= ``noise``
    - gradients help: ``square`` is not below the lowest accuracy under PGD
    - a larger ball does not raise it, and in a ball that contains all images it is zero

    The checks find gradients that vanish or mislead; passing them does not prove robustness. Source: Carlini et al.
    2019, "On evaluating adversarial robustness".

    Args:
        epsilons: radius by norm, in linf at most 1; by default the radius of the module's linf ball.
        steps: number of steps of PGD, each of size 2.5 / steps times the radius.
        restarts: number of random starts of ``more_restarts``.
        queries: number of queries of Square.
        max_batches: maximum number of batches of each process.
        tolerance: fraction of the examples by which a check may be violated, e.g. by chance.
        gradient_samples: number of passes over which gradients of networks with noise are averaged.
        num_samples: number of passes that classify each image, for networks with noise.
        seed: seed of the attacks' random draws.

    Raises:
        SettingError: if a setting is out of its range.
    """

    stages = ("test",)

    def __init__(
        self,
        epsilons: dict[Norm, float] | None = None,
        steps: int = 20,
        restarts: int = 5,
        queries: int = 500,
        max_batches: int = 1,
        tolerance: float = 0.02,
        gradient_samples: int = 1,
        num_samples: int = 10,
        seed: int = 0,
    ) -> None:
        name = "GradientMaskingChecks"
        for setting, count in (
            ("steps", steps),
            ("restarts", restarts),
            ("queries", queries),
            ("max_batches", max_batches),
            ("gradient_samples", gradient_samples),
            ("num_samples", num_samples),
        ):
            require(count >= 1, f"{name}.{setting}", count, "give at least 1")
        require(epsilons != {}, f"{name}.epsilons", epsilons, "give at least one, or leave it out")
        for norm, epsilon in (epsilons or {}).items():
            named_ball(f"{name}.epsilons.{norm}", norm, epsilon)
        require(0 <= tolerance < 1, f"{name}.tolerance", tolerance, "give a fraction of the examples in [0, 1)")
        super().__init__(seed, max_test_batches=max_batches)
        self.epsilons = epsilons
        self.tolerance, self.num_samples = tolerance, num_samples
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
        self._radii(module, x)

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:  # noqa: D102
        passes = self.num_samples if module.stochastic else 1
        with self.seeded(x):
            clean = judge_repeatedly(module, x, y, passes)[0].sum(0)
        self.update(f"{PREFIX}/accuracy/clean", partial(Accuracy, passes), clean)
        self.update(f"{PREFIX}/samples", SumMetric, torch.tensor(len(x), device=x.device))
        runs = [
            (norm, *case) for norm, epsilon in self._radii(module, x).items() for case in self._cases(norm, epsilon, x)
        ]
        for norm, index, name, size in tracked(runs):
            threat_model, metric = ball(norm, size), f"{name}/{threat_model_name(norm, size)}"
            remaining = torch.ones_like(y, dtype=torch.bool) if module.stochastic else clean > 0
            compute = partial(self._correct, module, index, name, threat_model, x, y, remaining)
            settings = [index, self.attacks[name], passes]  # the draws depend on the index
            correct = self.saved(module, metric, settings, (x, y), compute)["correct"]
            self.note_misclassified(module, threat_model, correct == 0, f"{name} of GradientMaskingChecks")
            self.update(f"{PREFIX}/accuracy/{metric}", partial(Accuracy, passes), correct)

    def _radii(self, module: RobustClassifier, x: Tensor) -> dict[Norm, float]:
        """Radius of the smallest ball, by norm."""
        if self.epsilons is not None:
            return self.epsilons
        return {"linf": norm_ball("GradientMaskingChecks.epsilons", "linf", None, module, x).epsilon}

    def _cases(self, norm: Norm, epsilon: float, x: Tensor) -> list[tuple[int, str, float]]:
        """Index and name of each attack, and the radius of the ball that it searches."""
        larger = [("pgd", size) for size in _doubled_sizes(norm, epsilon, x)]
        cases = [(name, epsilon) for name in self.attacks] + larger
        return [(index, name, size) for index, (name, size) in enumerate(cases)]

    def _correct(
        self, module: RobustClassifier, index: int, name: str, ball: ThreatModel, x: Tensor, y: Tensor, chosen: Tensor
    ) -> Rows:
        """Number of passes that are correct under the attack, int64 (B,); 0 for images that are not ``chosen``."""
        correct = torch.zeros_like(y)
        if chosen.any():
            attack = self.attacks[name] if module.stochastic else with_expectation(self.attacks[name], 1)
            passes = self.num_samples if module.stochastic else 1
            with self.seeded(x, index), part(chosen):
                x_adv = _attacked(name, attack, module, ball, x[chosen], y[chosen])
                correct[chosen] = judge_repeatedly(module, x_adv, y[chosen], passes)[0].sum(0)
        return {"correct": correct}

    def compute(self, module: RobustClassifier) -> dict[str, Tensor]:
        """The metrics and the number of failed checks; each of these gives a warning."""
        values = super().compute(module)
        failures = list(self._failures(values))
        for failure in failures:
            remedy = "PGD overestimates the robustness of this network; use APGD or AutoAttack, too"
            rank_zero_warn(f"gradient masking: {failure}; {remedy}")
        return values | {f"{PREFIX}/failed_checks": torch.tensor(float(len(failures)), device=module.device)}

    def _failures(self, values: dict[str, Tensor]) -> Iterator[str]:
        """Describe each failed check."""
        under_pgd = [name.rpartition("/")[2] for name in values if name.startswith(f"{PREFIX}/accuracy/pgd/")]
        for norm in dict.fromkeys(name.partition("_")[0] for name in under_pgd):
            balls = [name for name in under_pgd if name.startswith(f"{norm}_")]  # in ascending order of size
            yield from (f"in {balls[0]}, {failure}" for failure in self._failures_in(balls, values))

    def _failures_in(self, balls: list[str], values: dict[str, Tensor]) -> Iterator[str]:
        """Describe each failed check in balls of one norm, by their names in metrics."""
        names = {name: f"{PREFIX}/accuracy/{name}/{balls[0]}" for name in self.attacks}
        accuracy = {name: float(values[metric]) for name, metric in names.items() if metric in values}
        larger = {f"pgd in {name}": float(values[f"{PREFIX}/accuracy/pgd/{name}"]) for name in balls[1:]}
        accuracy, growing = accuracy | larger, ["pgd", *larger]
        whitebox = min(("pgd", "more_steps", "more_restarts"), key=lambda name: accuracy[name])
        checks = [
            ("pgd", "one_step", "many steps are weaker than one"),
            ("more_steps", "pgd", "more steps help the defender"),
            ("more_restarts", "pgd", "more restarts help the defender"),
            ("pgd", "noise", "random noise is stronger than PGD"),
            (whitebox, "square", _SQUARE),
            *((large, small, "a larger ball helps the defender") for small, large in pairwise(growing)),
        ]
        for lower, higher, what in checks:  # the attacks with the lower and the higher accuracy, if all is well
            if accuracy[lower] > accuracy[higher] + self.tolerance:
                values_of_both = f"accuracy {accuracy[higher]:.3f} under {higher}, {accuracy[lower]:.3f} under {lower}"
                yield f"{what} ({values_of_both})"
        if (remaining := accuracy[growing[-1]]) > self.tolerance:
            yield f"in a ball that holds all images the accuracy under PGD is {remaining:.3f}, not 0"


def _attacked(name: str, attack: Attack, module: nn.Module, ball: ThreatModel, x: Tensor, y: Tensor) -> Tensor:
    """The attack's images (B, C, H, W), or ``x`` itself if the gradient is zero: the checks then fail."""
    try:
        return checked_attack(name, attack, module, ball, x, y)
    except ZeroGradientError:
        return x


def _doubled_sizes(norm: Norm, epsilon: float, x: Tensor) -> list[float]:
    """Sizes above ``epsilon``, each twice the previous one; a ball of the last size holds all images."""
    pixels = x[0].numel()
    largest = {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[norm]
    sizes = []
    while epsilon < largest:
        epsilon = min(2 * epsilon, largest)
        sizes.append(epsilon)
    return sizes
