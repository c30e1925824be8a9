"""The network on which adversarial training on MNIST is measured (TRADES, weighted minimax)."""

from __future__ import annotations

from torch import nn

from robust.errors import require


class SmallCNN(nn.Sequential):
    """Four valid convolutions and three linear layers: 312,202 parameters on MNIST.

    The last layer starts at zero: before the first step all logits are 0. Source: Zhang et al. 2019 (TRADES), network
    of Carlini & Wagner 2017.

    Args:
        image_shape: (channels, height, width), height and width at least 16.
        num_classes: number of logits.
        dropout: probability, between the first two linear layers.

    Raises:
        SettingError: if the images have no channel or a side below 16, the number of classes is below 2, or ``dropout``
            is outside [0, 1).
    """

    def __init__(
        self, image_shape: tuple[int, int, int] = (1, 28, 28), num_classes: int = 10, dropout: float = 0.5
    ) -> None:
        channels, height, width = image_shape
        fits = channels >= 1 and min(height, width) >= 16
        require(fits, "image_shape", tuple(image_shape), "give (channels, height, width) of at least 16 pixels a side")
        require(num_classes >= 2, "num_classes", num_classes, "give at least 2 classes")
        require(0 <= dropout < 1, "dropout", dropout, "give a probability in [0, 1)")
        side = [((size - 4) // 2 - 4) // 2 for size in (height, width)]
        super().__init__(
            nn.Conv2d(channels, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * side[0] * side[1], 200),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(200, 200),
            nn.ReLU(),
            nn.Linear(200, num_classes),
        )
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        last = self[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
