"""CNN7, the network with batch normalisation that certified training is measured on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from robust.errors import require
from robust.networks.dm import ImageShape, check_sizes
from robust.networks.normalize import normalisation


class CNN7(nn.Sequential):
    """DM-large with batch normalisation before every ReLU: 13,259,338 parameters on MNIST, 17,192,650 on CIFAR-10.

    Source: Shi et al. 2021, Sec. 4 (CNN-7).

    Args:
        image_shape: (channels, height, width).
        num_classes: number of logits.
        width: channels of the first two convolutions; the other three have twice as many.
        features: number of outputs of the first linear layer.
        mean: per-channel mean for the normalisation layer; none by default, as on MNIST.
        std: per-channel std, given together with ``mean``.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        image_shape: ImageShape = (1, 28, 28),
        num_classes: int = 10,
        width: int = 64,
        features: int = 512,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        check_sizes(image_shape, num_classes, smallest=2)
        require(width >= 1, "width", width, "give at least 1 channel")
        require(features >= 1, "features", features, "give at least 1")
        channels, height, columns = image_shape
        layers = normalisation(mean, std)
        for out, stride in ((width, 1), (width, 1), (2 * width, 2), (2 * width, 1), (2 * width, 1)):
            layers += [nn.Conv2d(channels, out, 3, stride, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        flat = channels * ((height + 1) // 2) * ((columns + 1) // 2)
        layers += [nn.Flatten(), nn.Linear(flat, features), nn.BatchNorm1d(features), nn.ReLU()]
        super().__init__(*layers, nn.Linear(features, num_classes))
