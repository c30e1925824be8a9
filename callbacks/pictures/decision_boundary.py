"""Pictures of the predicted class on a plane through an image, with the outlines of its threat models."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.pictures.base import Picture, class_name
from lightning_modules.base import RobustClassifier, check_precision
from robust.attacks import PGD
from robust.errors import require
from robust.random import global_seed
from robust.threat_models import ThreatModel

_COLOURS = (
    "#4e79a7",
    "#f28e2b",
    "#e15759",
    "#76b7b2",
    "#59a14f",
    "#edc948",
    "#b07aa1",
    "#ff9da7",
    "#9c755f",
    "#bab0ac",
)


class DecisionBoundary(Picture):
    """Draws the predicted class around the first images of the test (and of ``train.py validate``).

    Each picture is the plane through an image along two orthogonal directions: towards the image that PGD returns in
    the module's first threat model, and a random one. Distances on the axes are in the l2 norm. Every point is clamped
    to [0, 1] before it is classified, and the outline of a threat model encloses the points that it contains after
    this. The figure is written to TensorBoard (``<stage>/boundary``) and to ``boundaries/`` in the log folder. Source:
    multi-norm training (MNG-AC), its figure of decision boundaries.

    Args:
        count: number of images.
        extent: l2 distance from the image to the border of the picture.
        points: number of points along each axis, at least 3.
        steps: steps of PGD, for the first direction.
        seed: seed of PGD and the random direction.

    Raises:
        SettingError: if a setting is out of its range.
    """

    tag = "boundary"
    folder_name = "boundaries"

    def __init__(self, count: int = 4, extent: float = 3.0, points: int = 81, steps: int = 20, seed: int = 0) -> None:
        super().__init__(count)
        require(extent > 0, "DecisionBoundary.extent", extent, "give a positive distance in the l2 norm")
        require(points >= 3, "DecisionBoundary.points", points, "give at least 3")
        self.extent = extent
        self.points = points
        self.seed = seed
        self.attack = PGD(steps)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse weights in half precision."""
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            check_precision(pl_module, trainer, type(self).__name__)

    def draw(self, module: RobustClassifier, x: Tensor, y: Tensor) -> dict[str, Figure]:
        """Draw one figure, with a picture for each image."""
        with global_seed(x.device, self.seed):
            return {"": self.figure(module, x, y)}

    def figure(self, module: RobustClassifier, x: Tensor, y: Tensor) -> Figure:
        """Draw a picture for each of the images ``x`` (B, C, H, W) with labels ``y`` (B,)."""
        models = module.threat_models(x, module.epsilon)
        x_adv = self.attack(module, next(iter(models.values())), x, y)
        offsets = torch.linspace(-self.extent, self.extent, self.points, device=x.device, dtype=x.dtype)
        figure = Figure(figsize=(2.6 * len(x), 3.2), layout="constrained")
        axes = figure.subplots(1, len(x), squeeze=False)[0]
        for index, axis in enumerate(axes):
            plane = plane_through(x[index], x_adv[index] - x[index], offsets)
            classes = torch.cat([module(part).argmax(1) for part in torch.split(plane, 256)])
            lines = {name: _contained(model, index, plane, x) for name, model in models.items()}
            self._picture(axis, offsets, classes, lines)
            axis.set_title(class_name(module, int(y[index])), fontsize=9)
        if axes[0].get_legend_handles_labels()[0]:  # there is no outline if no threat model's border is in the picture
            axes[0].legend(fontsize=7, loc="lower left")
        return figure

    def _picture(self, axis: Any, offsets: Tensor, classes: Tensor, lines: dict[str, Tensor]) -> None:
        grid, shape = offsets.cpu().numpy(), (self.points, self.points)
        edges = [index - 0.5 for index in range(len(_COLOURS) + 1)]
        colours, norm = ListedColormap(list(_COLOURS)), BoundaryNorm(edges, len(_COLOURS))
        shown = colours_of(classes).view(shape).cpu().numpy()
        axis.pcolormesh(grid, grid, shown, cmap=colours, norm=norm, shading="nearest")
        for (name, inside), style in zip(lines.items(), ("solid", "dashed", "dotted", "dashdot"), strict=False):
            axis.contour(grid, grid, inside.view(shape).cpu().numpy(), [0.5], colors="black", linestyles=style)
            axis.plot([], [], color="black", linestyle=style, label=name)
        axis.plot(0, 0, "k+")
        axis.set_aspect("equal")


def colours_of(classes: Tensor) -> Tensor:
    """Index of each class's colour, int64 (N,): the last digit of the class, or a free one if another class has that.

    Up to ten classes have different colours.

    >>> colours_of(torch.tensor([3, 13, 13, 5]))
    tensor([3, 0, 0, 5])
    """
    colours: dict[int, int] = {}
    for number in sorted(set(classes.tolist())):
        free = [colour for colour in range(len(_COLOURS)) if colour not in colours.values()]
        own = number % len(_COLOURS)
        colours[number] = own if own in free or not free else free[0]
    return torch.tensor([colours[number] for number in classes.tolist()], dtype=torch.long)


def plane_through(x: Tensor, towards: Tensor, offsets: Tensor) -> Tensor:
    """Images (P * P, C, H, W) in [0, 1] on the plane through ``x`` (C, H, W); columns follow the first direction.

    The second direction is random. If ``towards`` is zero, the first direction is zero.
    """
    first = towards / towards.norm().clamp_min(1e-12)
    second = torch.randn_like(x)
    second = second - (second * first).sum() * first
    second = second / second.norm()
    along = offsets[None, :, None, None, None] * first + offsets[:, None, None, None, None] * second
    plane: Tensor = (x + along).flatten(0, 1).clamp(0, 1)
    return plane


def _contained(threat_model: ThreatModel, index: int, plane: Tensor, x: Tensor) -> Tensor:
    """Whether the threat model of image ``index`` contains each image of the plane, as 0 and 1 (P * P,)."""
    image_threat_model = threat_model.select(torch.tensor([index], device=x.device))
    return image_threat_model.contains(plane, x[index : index + 1].expand_as(plane)).float()
