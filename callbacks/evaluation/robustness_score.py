"""R2, the mean distance of images to the decision boundary, and its curve."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from callbacks._stages import Stage
from callbacks.evaluation.attack_settings import check_call, check_names
from callbacks.evaluation.base import Evaluation
from callbacks.evaluation.saved_rows import Rows
from callbacks.pictures.base import write_figure
from lightning_modules.base import RobustClassifier
from robust.attacks import BoundaryAttack, FGSMGrid, GrowingPGD, LinearizedBoundary
from robust.errors import require
from robust.metrics import Gathered
from robust.scores import area_under_curve, margin_curve, nearest_boundary

NAME = "robustness_score/r2"
COLUMNS = ["label", "prediction", "margin", "attack", "distances"]
GRID_POINTS = 200


class RobustnessScore(Evaluation):
    """R2: the mean margin of images, which is the area under the curve of the fraction of images with larger margins.

    A margin is the smallest l2 distance, over all images in [0, 1], at which an attack changes the prediction, whether
    or not it is correct; if every attack fails, it is the cube's diameter. Measured margins are upper bounds: stronger
    attacks can only lower them. Compare models of about the same accuracy, with the same attacks. Logged:

    - ``<stage>/robustness_score/r2``: the mean; ``.../r2/area``: the same by the trapezoid rule on the drawn curve
    - ``.../r2/failed``: fraction of images on which every attack fails
    - ``.../r2/closest/<attack>``: fraction of images with this attack as the closest, the first one in a tie
    - ``.../r2/samples``: number of images

    The folder ``robustness_score/`` in the log folder has ``<stage>_margins.csv``, with all margins and each attack's
    distance, and ``<stage>_curve.png``, which TensorBoard shows too. In training, each epoch overwrites the files.

    Source: general robustness framework (Tibo, Jaeger, Larsen 2022), Sec. 5.

    Args:
        attacks: attacks by name; by default ``bg`` (LinearizedBoundary), ``fgsm`` (FGSMGrid) and ``pgd`` (GrowingPGD).
        halvings: number of bisections of the segment from an image to its attacked image; they give the distance with
            a precision of 2^-halvings of the segment's length.
        **settings: settings of :class:`Evaluation`; ``seed`` seeds the attacks' random draws.

    Raises:
        SettingError: if a setting is out of its range, or the network is stochastic.
        RuntimeError: if an attack returns an invalid image.
    """

    def __init__(
        self,
        attacks: dict[str, BoundaryAttack] | None = None,
        halvings: int = 25,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        attacks = {"bg": LinearizedBoundary(), "fgsm": FGSMGrid(), "pgd": GrowingPGD()} if attacks is None else attacks
        require(len(attacks) > 0, "RobustnessScore.attacks", attacks, "give at least one attack")
        check_names("RobustnessScore.attacks", attacks)
        for name, attack in attacks.items():
            remedy = "give LinearizedBoundary, FGSMGrid or GrowingPGD, which search the nearest boundary"
            check_call(f"RobustnessScore.attacks.{name}", attack, ("network", "x", "y"), remedy)
        require(1 <= halvings <= 50, "RobustnessScore.halvings", halvings, "give 1 to 50")
        self.attacks = attacks
        self.halvings = halvings

    def try_out(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Check that the network has no noise."""
        remedy = "its predictions differ from pass to pass, so that it has no margin; leave out RobustnessScore"
        require(not module.stochastic, "model", type(module).__name__, remedy)

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:  # noqa: D102
        self.try_out(module, x, y)
        nearest = self.saved(
            module, "margins", [self.attacks, self.halvings], (x, y), partial(self._nearest, module, x)
        )
        row = (self.indices, y, module(x).argmax(1), nearest["margin"], nearest["attack"], nearest["distances"])
        self.update("margins", partial(Gathered, COLUMNS), *row)

    def _nearest(self, module: RobustClassifier, x: Tensor) -> Rows:
        with self.seeded(x):
            nearest = nearest_boundary(module, self.attacks, x, self.halvings)
        return {"margin": nearest.margin, "attack": nearest.attack, "distances": nearest.distances}

    def compute(self, module: RobustClassifier) -> dict[str, Tensor]:
        """The score, the area under the drawn curve, and the fraction of images of each attack."""
        table = self.rows("margins")
        margins, attack = table["margin"].double(), table["attack"]
        grid, curve = _curve(margins)
        closest = {f"{NAME}/closest/{name}": (attack == k).double().mean() for k, name in enumerate(self.attacks)}
        return {
            NAME: area_under_curve(margins),
            f"{NAME}/area": torch.trapezoid(curve, grid),
            f"{NAME}/failed": (attack < 0).double().mean(),
            f"{NAME}/samples": torch.tensor(float(len(margins)), device=margins.device),
            **closest,
        }

    def write(self, stage: Stage, module: RobustClassifier, values: dict[str, Tensor]) -> None:
        """Draw the curve and write the table."""
        table = {name: column.cpu() for name, column in self.rows("margins").items()}
        folder = self.folder / "robustness_score"
        if module.trainer.is_global_zero:
            margins = table["margin"].double()
            figure = draw_curve({f"{type(module).__name__}, R2 = {float(values[NAME]):.3f}": margins})
            write_figure(module.trainer, f"{stage}/margin_curve", figure, folder / f"{stage}_curve.png")
            self._write_table(table, folder / f"{stage}_margins.csv")
        rank_zero_info(f"Margins: {folder / f'{stage}_margins.csv'}")

    def _write_table(self, table: dict[str, Tensor], path: Path) -> None:
        names = [*self.attacks, "none"]
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("sample", "label", "prediction", "margin", "attack", *self.attacks))
            columns = [table[name].tolist() for name in ("index", *COLUMNS)]
            for index, label, prediction, margin, attack, distances in zip(*columns, strict=True):
                writer.writerow((index, label, prediction, margin, names[attack], *distances))


def draw_curve(margins: dict[str, Tensor]) -> Figure:
    """Plot the fraction of images with larger margins over the radius, a curve for each name; margins are (N,)."""
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, values in margins.items():
        grid, curve = _curve(values.double())
        axes.plot(grid.numpy(), curve.numpy(), label=name)
    axes.set_xlabel("distance in l2")
    axes.set_ylabel("fraction of images with a larger margin")
    axes.set_ylim(0, 1.02)
    axes.legend()
    return figure


def _curve(margins: Tensor) -> tuple[Tensor, Tensor]:
    """The grid of the plot and the curve's values on it; both (200,)."""
    steps = torch.linspace(0, 1, GRID_POINTS, dtype=margins.dtype, device=margins.device)
    grid = margins.max() * steps
    return grid, margin_curve(margins, grid)
