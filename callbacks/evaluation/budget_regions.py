"""Measures whether learned budgets are small on the regions that determine the label."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.evaluation.base import Evaluation
from lightning_modules.base import RobustClassifier
from robust.errors import require
from robust.metrics import Gathered, PixelMeans

PIXELS = "/same_pixels"


class BudgetRegions(Evaluation):
    """The mean budget on each region of the images, such as a watermark, for data with known regions.

    The data module must have a method ``regions(split, indices)`` that returns masks (B, 1, H, W) by name. Logged for
    each of the module's threat models with a budget for each image and pixel:

    - ``<stage>/budget_region/<threat model>/<region>``: mean budget in pixel units, over the region's pixels and
      channels, then over the images with this region
    - ``<stage>/budget_region/<threat model>/<region>/same_pixels``: the same with each pixel's budget replaced by its
      mean over all images; the two are equal if budgets depend on the pixel alone
    - ``<stage>/budget_order/<threat model>/<region>_below_<region>``: fraction, in [0, 1], of the images with both
      regions whose mean budget is smaller on the first; pairs are in the data module's order

    Budgets are nominal: the intersection of their box with [0, 1] is ignored. Source: contextual budgets, Sec. 4.2,
    4.3, which show images of budgets instead (figures 4, 5).

    Args:
        every_n_epochs: also measure in validation at this interval, in epochs, and at the end of the training.
        max_batches: maximum number of batches of each process in validation.

    Raises:
        SettingError: if a setting is below 1, or the data module has no ``regions``.
    """

    def __init__(self, every_n_epochs: int | None = None, max_batches: int | None = None) -> None:
        super().__init__(seed=0, every_n_epochs=every_n_epochs, max_batches=max_batches)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the data module has regions."""
        super().setup(trainer, pl_module, stage)
        data = getattr(pl_module, "data_module", None)
        remedy = "it has no method regions; give WatermarkedMNIST or DoubledCIFAR10, or leave out BudgetRegions"
        fits = stage == "predict" or hasattr(data, "regions")
        require(fits, "BudgetRegions, data", type(data).__name__, remedy)

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:  # noqa: D102
        masks: dict[str, Tensor] = module.data_module.regions(
            "test" if module.trainer.testing else "val", self.indices.cpu()
        )
        for name, threat_model in module.threat_models(x, module.epsilon).items():
            if threat_model.per_pixel is not None and threat_model.per_pixel.shape == x.shape:
                budgets = threat_model.per_pixel.double().mean(1, keepdim=True)
                regions = torch.cat(list(masks.values()), 1).to(x.device)
                means = (budgets * regions).sum((2, 3)) / regions.sum((2, 3))  # (B, R), NaN for an empty region
                self.update(name, partial(Gathered, list(masks)), self.indices, *means.unbind(1))
                self.update(f"{name}{PIXELS}", partial(PixelMeans, *regions.shape[1:]), budgets.squeeze(1), regions)

    def compute(self, module: RobustClassifier) -> dict[str, Tensor]:
        """Mean budgets of the regions, and fractions of images in which one region's mean is below another's."""
        values: dict[str, Tensor] = {}
        for name in [name for name in self.metrics if not name.endswith(PIXELS)]:
            table = self.metrics[name].compute()
            regions = [region for region in table if region != "index"]
            for region, same_pixels in zip(regions, self.metrics[f"{name}{PIXELS}"].compute(), strict=True):
                values[f"budget_region/{name}/{region}"] = table[region].nanmean()
                values[f"budget_region/{name}/{region}{PIXELS}"] = same_pixels
            for first, second in combinations(regions, 2):
                both = ~(table[first].isnan() | table[second].isnan())
                below = (table[first] < table[second])[both].double().mean()
                values[f"budget_order/{name}/{first}_below_{second}"] = below
        return values
