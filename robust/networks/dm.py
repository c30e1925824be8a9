"""DM-small and DM-large, the convolutional networks of Gowal et al. 2018 that certified training is measured on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from robust.errors import require
from robust.networks.normalize import normalisation

ImageShape = tuple[int, int, int]


def check_sizes(image_shape: ImageShape, num_classes: int, smallest: int) -> None:
    """Check the settings of a network for images of one shape.

    Raises:
        SettingError: if ``image_shape`` is not (channels, height, width) with at least 1 channel and ``smallest``
            pixels a side, or there are fewer than 2 classes.
    """
    require(
        len(image_shape) == 3 and min(image_shape[1:]) >= smallest and image_shape[0] >= 1,
        "image_shape",
        image_shape,
        f"give (channels, height, width) with height and width of at least {smallest}",
    )
    require(num_classes >= 2, "num_classes", num_classes, "give at least 2 classes")


class DMSmall(nn.Sequential):
    """Two valid convolutions and two linear layers: 329,606 parameters on MNIST, 470,918 on CIFAR-10.

    Source: Gowal et al. 2018, table 1 (small); contextual budgets, Appendix A (MNIST).

    Args:
        image_shape: (channels, height, width).
        num_classes: number of logits.
        mean: per-channel mean for the normalisation layer; none by default, as on MNIST.
        std: per-channel std, given together with ``mean``.

    Raises:
        SettingError: if ``image_shape`` is not (channels, height, width) with at least 1 channel and 10 pixels a side,
            there are fewer than 2 classes, only one of ``mean`` and ``std`` is given, their lengths differ, or a std
            is not positive.
    """

    def __init__(
        self,
        image_shape: ImageShape = (1, 28, 28),
        num_classes: int = 10,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        check_sizes(image_shape, num_classes, smallest=10)
        channels, height, width = image_shape
        flat = 32 * ((height - 4) // 2 - 2) * ((width - 4) // 2 - 2)
        super().__init__(
            *normalisation(mean, std),
            nn.Conv2d(channels, 16, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(flat, 100),
            nn.ReLU(),
            nn.Linear(100, num_classes),
        )


class DMLarge(nn.Sequential):
    """Five padded convolutions and two linear layers: 13,257,290 parameters on MNIST, 17,190,602 on CIFAR-10.

    Source: Gowal et al. 2018, table 1 (large); contextual budgets, Appendix A (CIFAR-10, and uniform MNIST).

    Args:
        image_shape: (channels, height, width).
        num_classes: number of logits.
        mean: per-channel mean for the normalisation layer; none by default, as on MNIST.
        std: per-channel std, given together with ``mean``.

    Raises:
        SettingError: if ``image_shape`` is not (channels, height, width) with at least 1 channel and 2 pixels a side,
            there are fewer than 2 classes, only one of ``mean`` and ``std`` is given, their lengths differ, or a std
            is not positive.
    """

    def __init__(
        self,
        image_shape: ImageShape = (1, 28, 28),
        num_classes: int = 10,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        check_sizes(image_shape, num_classes, smallest=2)
        channels, height, width = image_shape
        flat = 128 * ((height + 1) // 2) * ((width + 1) // 2)
        super().__init__(
            *normalisation(mean, std),
            nn.Conv2d(channels, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(flat, 512),
            nn.ReLU(),
            nn.Linear(512, num_classes),
        )
