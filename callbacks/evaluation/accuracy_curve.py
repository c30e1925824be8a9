"""Accuracy as a function of the attack's radius, as a figure and a table."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from callbacks._stages import Stage
from callbacks.evaluation.attack_settings import CALL, Ball, check_call, check_names, named_ball
from callbacks.evaluation.base import Evaluation
from callbacks.evaluation.saved_rows import Rows
from callbacks.pictures.base import write_figure
from lightning_modules.base import RobustClassifier
from robust.errors import SettingError, require
from robust.evaluation import Attack, checked_attack, judge_repeatedly
from robust.metric_names.registry import threat_model_name
from robust.metrics import Accuracy, AccuracyStd
from robust.progress import tracked
from robust.random import part
from robust.threat_models import Norm


class Point(NamedTuple):
    """One point of a curve: radius in pixel units; accuracy and its std over ``num_samples`` passes, in [0, 1]."""

    epsilon: float
    accuracy: float
    std: float


Curves = dict[str, list[Point]]


class AccuracyCurve(Evaluation):
    """Accuracy on the test data under each attack, at each of several radii.

    It is logged as ``test/accuracy_curve/<attack>/<norm>_<epsilon>``, with ``.../std`` for networks with noise, drawn
    in TensorBoard and in ``accuracy_curve.png`` in the log folder, and written to ``accuracy_curve.csv`` there (columns
    attack, epsilon, accuracy, std). Radius 0 is the clean accuracy. An image that is misclassified without
    perturbation is not attacked and counts as misclassified. Networks with noise classify every image in
    ``num_samples`` passes: the curve is the mean over passes, the bars are the std, and all images are attacked.

    Source: Learn2Perturb, figures 5 and 6.

    Args:
        attacks: attacks by the name of their curve; called as ``attack(network, threat_model, x, y)``.
        epsilons: positive radii of the balls, in pixel units.
        norm: norm of the balls.
        compare: paths of ``accuracy_curve.csv`` of other runs, by name; their curves are drawn too.
        num_samples: number of passes that classify each image, for networks with noise.
        seed: seed of the attacks' random draws.

    Raises:
        SettingError: if a setting is out of its range, or a file in ``compare`` cannot be read.
        RuntimeError: if an attack returns images outside its ball or [0, 1].
    """

    stages = ("test",)

    def __init__(
        self,
        attacks: dict[str, Attack],
        epsilons: list[float],
        norm: Norm = "linf",
        compare: dict[str, str] | None = None,
        num_samples: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        require(len(attacks) > 0, "AccuracyCurve.attacks", attacks, "give at least one attack")
        positive = len(epsilons) > 0 and all(epsilon > 0 for epsilon in epsilons)
        require(positive, "AccuracyCurve.epsilons", epsilons, "give radii above 0; 0 is always included")
        require(num_samples >= 1, "AccuracyCurve.num_samples", num_samples, "give at least 1")
        check_names("AccuracyCurve.attacks", attacks)
        for name, attack in attacks.items():
            check_call(f"AccuracyCurve.attacks.{name}", attack, *CALL)
        self.attacks = attacks
        self.epsilons = sorted(set(epsilons))
        twice = len({f"{epsilon:g}" for epsilon in self.epsilons}) < len(self.epsilons)
        require(not twice, "AccuracyCurve.epsilons", epsilons, "give radii with different names in six digits")
        self.balls = {epsilon: named_ball("AccuracyCurve.epsilons", norm, epsilon) for epsilon in self.epsilons}
        self.norm = norm
        self.num_samples = num_samples
        self.others: Curves = {}
        for run, path in (compare or {}).items():
            self.others |= {f"{run}, {attack}": curve for attack, curve in read_curves(path, norm).items()}

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:  # noqa: D102
        num_samples = self.num_samples if module.stochastic else 1
        with self.seeded(x):
            clean, _ = judge_repeatedly(module, x, y, num_samples)
        remaining = (clean.any(0) | module.stochastic).nonzero().squeeze(1)
        for index, (name, attack) in enumerate(tracked(list(self.attacks.items()))):
            self._update(name, 0.0, clean)
            for epsilon, threat_model in tracked(list(self.balls.items())):
                run = partial(self._correct, module, index, name, threat_model, x, y, remaining)
                settings = [index, attack, num_samples]  # the draws depend on the index
                correct = self.saved(module, self._name(name, epsilon), settings, (x, y), run)["correct"].T
                self.note_misclassified(module, threat_model, ~correct.any(0), name)
                self._update(name, epsilon, correct)

    def _correct(
        self, module: RobustClassifier, index: int, name: str, ball: Ball, x: Tensor, y: Tensor, remaining: Tensor
    ) -> Rows:
        """Whether each pass is correct under the attack, bool (B, S); false outside ``remaining``."""
        num_samples = self.num_samples if module.stochastic else 1
        correct = torch.zeros(num_samples, len(y), dtype=torch.bool, device=y.device)
        if len(remaining) > 0:
            with self.seeded(x, index), part(remaining):
                x_adv = checked_attack(name, self.attacks[name], module, ball, x[remaining], y[remaining])
                correct[:, remaining], _ = judge_repeatedly(module, x_adv, y[remaining], num_samples)
        return {"correct": correct.T}

    def _update(self, attack: str, epsilon: float, correct: Tensor) -> None:
        """Update the metrics by whether each pass classifies each image correctly, bool (S, B)."""
        name = self._name(attack, epsilon)
        self.update(name, partial(Accuracy, len(correct)), correct.sum(0))
        if len(correct) > 1:
            self.update(f"{name}/std", partial(AccuracyStd, len(correct)), correct)

    def _name(self, attack: str, epsilon: float) -> str:
        return f"accuracy_curve/{attack}/{threat_model_name(self.norm, epsilon)}"

    def write(self, stage: Stage, module: RobustClassifier, values: dict[str, Tensor]) -> None:
        """Draw the curves and write the table."""
        if not module.trainer.is_global_zero:
            return
        curves = {attack: self._curve(attack, values) for attack in self.attacks}
        path = self.folder / "accuracy_curve.csv"
        figure = draw_curves(curves | self.others, self.norm)
        write_figure(module.trainer, f"{stage}/accuracy_curve", figure, path.with_suffix(".png"), dpi=150)
        write_curves(path, curves, self.norm)
        rank_zero_info(f"Accuracy at each epsilon: {path} and {path.with_suffix('.png').name}")

    def _curve(self, attack: str, values: dict[str, Tensor]) -> list[Point]:
        names = {epsilon: self._name(attack, epsilon) for epsilon in (0.0, *self.epsilons)}
        no_noise = torch.tensor(0.0)
        return [
            Point(epsilon, float(values[name]), float(values.get(f"{name}/std", no_noise)))
            for epsilon, name in names.items()
        ]


def draw_curves(curves: Curves, norm: str = "linf") -> Figure:
    """Plot accuracy in percent over the radius, with error bars of one std."""
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        radii, accuracies, stds = zip(*curve, strict=True)
        heights, bars = [100 * fraction for fraction in accuracies], [100 * fraction for fraction in stds]
        axes.errorbar(radii, heights, bars, label=name, marker="o", markersize=3, capsize=2)
    axes.set_xlabel(f"epsilon ({norm}, in pixel units of [0, 1])")
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def write_curves(path: Path, curves: Curves, norm: str = "linf") -> None:
    """Write a CSV file with columns attack, norm, epsilon, accuracy, std."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["attack", "norm", *Point._fields])
        table.writerows([name, norm, *point] for name, curve in curves.items() for point in curve)


def read_curves(path: str | Path, norm: str = "linf") -> Curves:
    """Read a file that :func:`write_curves` wrote. Those of earlier versions have no norm: it is taken to be this one.

    Raises:
        SettingError: if the file cannot be read, or its radii are in another norm.
    """
    curves: Curves = {}
    try:
        with Path(path).open(newline="") as file:
            for row in csv.DictReader(file):
                point = Point(*(float(row[field]) for field in Point._fields))
                given = row.get("norm", norm)
                require(given == norm, "AccuracyCurve.compare", str(path), f"its radii are in {given}, not in {norm}")
                curves.setdefault(row["attack"], []).append(point)
    except SettingError:
        raise
    except (OSError, KeyError, ValueError) as error:
        raise SettingError("AccuracyCurve.compare", str(path), "give an accuracy_curve.csv of another run") from error
    return curves
