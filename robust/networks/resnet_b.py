"""ResNet-2B and ResNet-4B, the residual networks that bounds are compared on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust.errors import require
from robust.networks.dm import ImageShape, check_sizes
from robust.networks.normalize import normalisation


def _convolution(in_channels: int, channels: int, kernel: int, stride: int, batch_norm: bool) -> nn.Module:
    layer = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=not batch_norm)
    return nn.Sequential(layer, nn.BatchNorm2d(channels)) if batch_norm else layer


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 where the shape changes; with or without batch normalisation."""

    def __init__(self, in_channels: int, channels: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels, channels, 3, stride, batch_norm)
        self.conv2 = _convolution(channels, channels, 3, 1, batch_norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = _convolution(in_channels, channels, 1, stride, batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, channels, H / stride, W / stride)."""
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNetB(nn.Module):
    """ResNet-2B or 4B: a convolution of stride 2, residual blocks that halve the sides every second time, two layers.

    The networks of VNN-COMP 2021's CIFAR-10 ResNets (Wang et al. 2021, Beta-CROWN), which have 112,006 parameters (2
    blocks, width 8) and 123,734 (4 blocks, width 16), both without batch normalisation.

    Args:
        image_shape: (channels, height, width).
        num_classes: number of logits.
        blocks: number of residual blocks.
        width: channels of the first convolution; the blocks have twice as many.
        batch_norm: whether batch normalisation follows each convolution.
        mean: per-channel mean for the normalisation layer; none by default.
        std: per-channel std, given together with ``mean``.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(
        self,
        image_shape: ImageShape = (3, 32, 32),
        num_classes: int = 10,
        blocks: Literal[2, 4] = 2,
        width: int = 8,
        batch_norm: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(image_shape, num_classes, smallest=2)
        require(blocks in (2, 4), "blocks", blocks, "give 2 or 4")
        require(width >= 1, "width", width, "give at least 1 channel")
        channels, *sides = image_shape
        self.normalize = nn.Sequential(*normalisation(mean, std))
        self.stem = _convolution(channels, width, 3, 2, batch_norm)
        strides = (2, 1) * (blocks // 2)
        inputs = (width, *[2 * width] * (blocks - 1))
        self.blocks = nn.Sequential(*map(ResidualBlock, inputs, [2 * width] * blocks, strides, [batch_norm] * blocks))
        for _ in range(1 + blocks // 2):
            sides = [(side + 1) // 2 for side in sides]
        self.features = nn.Linear(2 * width * sides[0] * sides[1], 100)
        self.logits = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, K)."""
        hidden = self.blocks(F.relu(self.stem(self.normalize(x))))
        logits: Tensor = self.logits(F.relu(self.features(torch.flatten(hidden, 1))))
        return logits
