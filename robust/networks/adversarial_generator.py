"""The generator of adversarial examples that is trained together with the classifier."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from robust.errors import require

Output = Literal["clip", "straight_through", "sigmoid"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class AdversarialGenerator(nn.Module):
    """Maps an image to an adversarial image of the same shape: 918,913 parameters with one channel, 920,067 with three.

    Two strided convolutions down, two residual blocks, two transposed ones up; no normalisation layers. Source:
    general robustness framework, Sec. 4.1 and 6, which leave the network open; this is ours.

    Args:
        channels: number of channels of the images; their height and width must be multiples of 4.
        width: channels of the first convolution; the widest have four times as many.
        output: ``"clip"`` gives clip(x + tanh(h), 0, 1), which starts near the identity; ``"straight_through"`` the
            same with the gradient of x + tanh(h), for pixels that are black or white have none otherwise;
            ``"sigmoid"`` gives sigmoid(h), which starts far from the image.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(self, channels: int = 1, width: int = 32, output: Output = "clip") -> None:
        super().__init__()
        require(channels >= 1, "channels", channels, "give at least 1")
        require(width >= 1, "width", width, "give at least 1")
        require(output in get_args(Output), "output", output, f"give one of {', '.join(get_args(Output))}")
        self.output: Output = output
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
            nn.ReLU(),
            ResidualBlock(4 * width),
            ResidualBlock(4 * width),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to images of the same shape and range."""
        h: Tensor = self.layers(x)
        if self.output == "sigmoid":
            return h.sigmoid()
        moved = x + h.tanh()
        clipped = moved.clamp(0.0, 1.0)
        return clipped if self.output == "clip" else clipped.detach() + (moved - moved.detach())
