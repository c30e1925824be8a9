"""Accuracy as a function of the attack's radius, on any number of processes: a picture and a table."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from callbacks._attacking import Attack, AttackingEvaluation, attacked
from callbacks._folders import log_folder
from callbacks._stochastic import verdicts
from lightning_modules.base import RobustClassifier
from robust.errors import SettingError, require
from robust.metrics import Accuracy, AccuracyDeviation
from robust.random import part
from robust.threat_models import Norm, ball


class Point(NamedTuple):
    """One point of a curve: radius in pixel units; accuracy and its deviation over passes, in [0, 1]."""

    epsilon: float
    accuracy: float
    deviation: float


Curves = dict[str, list[Point]]


class AccuracyCurve(AttackingEvaluation):
    """Accuracy on the test data under each attack, at each of several radii.

    Logged as ``test/accuracy_curve/<attack>/<epsilon>``, with ``.../deviation`` where there is one; drawn in
    TensorBoard and in ``accuracy_curve.png`` in the log folder; written to ``accuracy_curve.csv`` there (columns
    attack, epsilon, accuracy, deviation). Radius 0 is the clean accuracy. An image that is misclassified without
    perturbation is not attacked and counts as wrong. Networks with noise are judged in several passes: the curve is
    their mean, its bars their standard deviation, and all images are attacked. Source: Learn2Perturb, figures 5 and 6.

    Args:
        attacks: by the name of their curve; called as ``attack(network, threat_model, x, y)``.
        epsilons: radii of the balls above 0, in pixel units.
        norm: of the balls.
        compare: ``accuracy_curve.csv`` of other runs, by name, whose curves are drawn too.
        judgements: number of passes in which networks with noise are judged.
        seed: of the attacks' random draws.

    Raises:
        SettingError: if a setting is out of its range, or a file to compare with cannot be read.
        RuntimeError: if an attack returns images outside its ball or [0, 1].
    """

    def __init__(
        self,
        attacks: dict[str, Attack],
        epsilons: list[float],
        norm: Norm = "linf",
        compare: dict[str, str] | None = None,
        judgements: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        require(len(attacks) > 0, "AccuracyCurve.attacks", attacks, "give at least one attack")
        positive = len(epsilons) > 0 and all(epsilon > 0 for epsilon in epsilons)
        require(positive, "AccuracyCurve.epsilons", epsilons, "give radii above 0; 0 is always there")
        require(judgements >= 1, "AccuracyCurve.judgements", judgements, "give at least 1")
        self.attacks = attacks
        self.epsilons = sorted(set(epsilons))
        self.balls = {epsilon: ball(norm, epsilon) for epsilon in self.epsilons}
        self.norm = norm
        self.judgements = judgements
        self._curves: Curves = {}
        self.others: Curves = {}
        for run, path in (compare or {}).items():
            self.others |= {f"{run}, {attack}": curve for attack, curve in read_curves(path).items()}
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the log folder, which must be asked in all processes."""
        super().setup(trainer, pl_module, stage)
        self._folder = log_folder(trainer)

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor, batch_idx: int) -> None:
        """See :meth:`AttackingEvaluation.evaluate`."""
        passes = self.judgements if module.stochastic else 1
        with self.drawing(x, batch_idx):
            clean, _ = verdicts(module, x, y, passes)
        left = (clean.any(0) | module.stochastic).nonzero().squeeze(1)
        for index, (name, attack) in enumerate(self.attacks.items()):
            self._count(name, 0.0, clean)
            for epsilon, threat_model in self.balls.items():
                right = torch.zeros_like(clean)
                if len(left) > 0:
                    with self.drawing(x, batch_idx, index), part(left):
                        found = attacked(name, attack, module, threat_model, x[left], y[left])
                        right[:, left], _ = verdicts(module, found, y[left], passes)
                self.note_broken(module, threat_model, ~right.any(0), name)
                self._count(name, epsilon, right)

    def _count(self, name: str, epsilon: float, right: Tensor) -> None:
        """Count the verdicts of all passes, bool (P, B)."""
        figure = _figure(name, epsilon)
        self.count(figure, partial(Accuracy, len(right)), right.sum(0))
        if len(right) > 1:
            self.count(f"{figure}/deviation", partial(AccuracyDeviation, len(right)), right)

    def figures(self) -> dict[str, Tensor]:
        """See :meth:`AttackingEvaluation.figures`."""
        found: dict[str, Tensor] = {name: metric.compute() for name, metric in self.metrics.items()}
        nothing = torch.tensor(0.0)
        for name in self.attacks:
            figures = {epsilon: _figure(name, epsilon) for epsilon in (0.0, *self.epsilons)}
            self._curves[name] = [
                Point(epsilon, float(found[figure]), float(found.get(f"{figure}/deviation", nothing)))
                for epsilon, figure in figures.items()
            ]
        return found

    def on_test_epoch_end(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Log the figures, draw the curves and write the table."""
        super().on_test_epoch_end(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "accuracy_curve.csv"
        write_curves(path, self._curves)
        figure = draw_curves(self._curves | self.others, self.norm)
        figure.savefig(path.with_suffix(".png"), dpi=150)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("test/accuracy_curve", figure)
        rank_zero_info(f"Accuracy at each epsilon: {path} and {path.with_suffix('.png').name}")


def draw_curves(curves: Curves, norm: str = "linf") -> Figure:
    """Accuracy in percent over the radius, a line for each of the curves with bars of one standard deviation."""
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        radii, accuracies, deviations = zip(*curve, strict=True)
        heights, bars = [100 * share for share in accuracies], [100 * share for share in deviations]
        axes.errorbar(radii, heights, bars, label=name, marker="o", markersize=3, capsize=2)
    axes.set_xlabel(f"epsilon ({norm}, in pixel units of [0, 1])")
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def write_curves(path: Path, curves: Curves) -> None:
    """A CSV file with columns attack, epsilon, accuracy, deviation."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["attack", *Point._fields])
        table.writerows([name, *point] for name, curve in curves.items() for point in curve)


def read_curves(path: str | Path) -> Curves:
    """What :func:`write_curves` wrote.

    Raises:
        SettingError: if it cannot be read.
    """
    curves: Curves = {}
    try:
        with Path(path).open(newline="") as file:
            for row in csv.DictReader(file):
                point = Point(*(float(row[field]) for field in Point._fields))
                curves.setdefault(row["attack"], []).append(point)
    except (OSError, KeyError, ValueError) as error:
        raise SettingError("AccuracyCurve.compare", str(path), "give an accuracy_curve.csv of another run") from error
    return curves


def _figure(attack: str, epsilon: float) -> str:
    return f"accuracy_curve/{attack}/{epsilon:g}"
