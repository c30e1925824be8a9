"""The classifier for MNIST, Fashion-MNIST and SVHN in the experiments on robustness scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from robust.errors import require
from robust.networks.normalize import normalisation


class PlainCNN(nn.Sequential):
    """Three pairs of 3x3 convolutions and two linear layers: 584,170 parameters on MNIST, 814,122 on SVHN.

    No batch normalisation: input gradients of one example then do not depend on the others. The general robustness
    framework (Tibo, Jaeger, Larsen 2022) names one network for the three data sets and does not describe it; this is
    ours.

    Args:
        image_shape: (channels, height, width), height and width at least 8.
        num_classes: number of logits.
        dropout: probability, before the first linear layer.
        width: channels of the first pair; the others have two and four times as many.
        mean: per-channel mean for the normalisation layer; none by default.
        std: per-channel std, given together with ``mean``.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int = 10,
        dropout: float = 0.5,
        width: int = 32,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        channels, height, rows = image_shape
        fits = channels >= 1 and min(height, rows) >= 8
        require(fits, "image_shape", tuple(image_shape), "give (channels, height, width) of at least 8 pixels a side")
        require(num_classes >= 2, "num_classes", num_classes, "give at least 2 classes")
        require(0 <= dropout < 1, "dropout", dropout, "give a probability in [0, 1)")
        require(width >= 1, "width", width, "give at least 1 channel")
        layers = normalisation(mean, std)
        for out in (width, 2 * width, 4 * width):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(out, out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            channels = out
        layers += [nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels * (height // 8) * (rows // 8), 256)]
        super().__init__(*layers, nn.ReLU(), nn.Linear(256, num_classes))
        # faster on CPUs: convolutions copy less, and pooling is vectorised
        self.to(memory_format=torch.channels_last)
