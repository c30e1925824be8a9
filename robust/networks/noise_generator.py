"""The noise generator of multi-norm training."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust.errors import require
from robust.random import randn


class NoiseGenerator(nn.Module):
    """Maps an image and random numbers to noise of the image's shape: 4,243 parameters for 3 channels.

    Three convolutions of 1x1 and one of 3x3 on standard normal numbers z beside the image, plus z itself. Source:
    Learning to Generate Noise for Multi-Attack Robustness (MNG-AC). The paper's generator is given the image; the
    published code's sees the random numbers alone (4,183 parameters). Weights start as there: normal of variance
    2 / (k^2 C_out), without bias.

    Args:
        channels: number of channels of the images.
        conditional: whether the generator sees the image.
        width: number of channels of the hidden layers.

    Raises:
        SettingError: if ``channels`` or ``width`` is below 1.
    """

    def __init__(self, channels: int = 3, conditional: bool = True, width: int = 20) -> None:
        super().__init__()
        require(channels >= 1, "channels", channels, "give those of the images, at least 1")
        require(width >= 1, "width", width, "give at least 1 channel")
        self.conditional = conditional
        self.layers = nn.Sequential(
            nn.Conv2d((1 + conditional) * channels, width, 1),
            nn.LeakyReLU(0.01),
            nn.Conv2d(width, width, 3),
            nn.LeakyReLU(0.01),
            nn.Conv2d(width, width, 1),
            nn.LeakyReLU(0.01),
            nn.Conv2d(width, channels, 1),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                std = math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels))
                nn.init.normal_(layer.weight, std=std)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def draw(self, x: Tensor) -> Tensor:
        """Standard normal numbers (B, C, H + 2, W + 2) for images (B, C, H, W)."""
        return randn((*x.shape[:2], x.shape[2] + 2, x.shape[3] + 2), x)

    def forward(self, x: Tensor) -> Tensor:
        """Noise (B, C, H, W), of any size, for images of that shape."""
        z = self.draw(x)
        seen = torch.cat([F.pad(x, (1, 1, 1, 1), mode="reflect"), z], 1) if self.conditional else z
        noise: Tensor = self.layers(seen)
        return noise + z[:, :, 1:-1, 1:-1]
