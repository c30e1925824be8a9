"""Pictures of images and the budgets that a method learned for them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.pictures.base import Picture, class_name, named_channels, visible
from lightning_modules.base import RobustClassifier
from robust.errors import require


def draw_budgets(
    images: Tensor, budgets: Tensor, title: str = "", white: float | None = None, names: Sequence[str] = ()
) -> Figure:
    """Draw images above and their budgets below, with one colour scale for all budgets.

    Args:
        images: images (N, C, H, W) in [0, 1]; the mean over channels is drawn unless there are one or three.
        budgets: budgets (N, C, H, W) in [0, 1]; the mean over channels is drawn.
        title: title of the figure.
        white: budget that is white in a third row, which shows the budgets as the paper does: divided by this number,
            as an image with all channels; None for no such row.
        names: text above each image; none by default.
    """
    count, means, rows = len(images), budgets.mean(1), 2 if white is None else 3
    stretch = math.sqrt(images.shape[3] / images.shape[2])  # so that images of all aspect ratios have the same area
    figure = Figure(figsize=(1.1 * stretch * count + 1.2, 0.6 + 1.1 / stretch * rows), layout="constrained")
    axes = figure.subplots(rows, count, squeeze=False)
    low, high = float(means.min()), float(means.max())
    for column in range(count):
        _show(axes[0, column], images[column])
        drawn = axes[1, column].imshow(means[column].cpu().numpy(), cmap="viridis", vmin=low, vmax=high)
        if white is not None:
            _show(axes[2, column], (budgets[column] / white).clamp(max=1.0))
    for axis, name in zip(axes[0], names, strict=False):
        axis.set_title(name, fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0, 0].set_ylabel(named_channels("image", images))
    axes[1, 0].set_ylabel("budget")
    if white is not None:
        axes[2, 0].set_ylabel(f"/ {white:.3g}")
    figure.colorbar(drawn, ax=axes[1, :], label="epsilon")
    figure.suptitle(title, fontsize=10)
    return figure


def _show(axis: Axes, image: Tensor) -> None:
    """Draw an image (C, H, W) in [0, 1], grey or in colour."""
    axis.imshow(visible(image).permute(1, 2, 0).cpu().numpy(), cmap="gray", vmin=0, vmax=1)


class BudgetImages(Picture):
    """Draws the first images of the validation and test data with their learned budgets.

    Figures are written to TensorBoard (``<stage>/budgets/<threat model>``) and to ``budgets/`` in the log folder.
    Threat models without per-pixel budgets are not drawn.

    Args:
        count: number of images.
        every_n_epochs: draw in validation at this interval, in epochs of training.
        white: budget in pixel units that is white in an additional row, which shows the budgets as the paper does; 1
            in figure 2.
        white_over_epsilon: the same budget in units of the module's epsilon; alpha_high in figures 3 and 5, so that
            the largest possible budget is white.

    Raises:
        SettingError: if a number is below 1, a white is not positive, or both whites are given.
    """

    tag = "budgets"
    folder_name = "budgets"

    def __init__(
        self,
        count: int = 8,
        every_n_epochs: int = 1,
        white: float | None = None,
        white_over_epsilon: float | None = None,
    ) -> None:
        super().__init__(count, every_n_epochs)
        for name, size in (("white", white), ("white_over_epsilon", white_over_epsilon)):
            require(size is None or size > 0, f"BudgetImages.{name}", size, "give a positive size")
        both = white is not None and white_over_epsilon is not None
        require(not both, "BudgetImages.white_over_epsilon", white_over_epsilon, "leave out one of the two whites")
        self.white, self.white_over_epsilon = white, white_over_epsilon

    def draw(self, module: RobustClassifier, x: Tensor, y: Tensor) -> dict[str, Figure]:
        """Draw a figure for each threat model with a budget for each image and pixel."""
        white = self.white if self.white_over_epsilon is None else self.white_over_epsilon * module.epsilon
        names = [class_name(module, label) for label in y.tolist()]
        figures: dict[str, Figure] = {}
        for name, threat_model in module.threat_models(x, module.epsilon).items():
            if threat_model.per_pixel is not None:
                title = f"{name} budgets, volume of epsilon {module.epsilon:g}"
                figures[name] = draw_budgets(x, threat_model.per_pixel.expand_as(x), title, white, names)
        return figures
