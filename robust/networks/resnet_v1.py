"""The residual networks of CIFAR-10, with shortcuts that have no parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust.errors import require
from robust.networks.normalize import normalize_or_identity


class PaddedBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and a shortcut without parameters.

    Where the shape changes, it takes every other pixel and zeros for the new channels (option A of He et al. 2016).
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.addition = nn.Identity()  # a name for the sum, where noise may be inserted
        self.stride, self.new_channels = stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, channels, H / stride, W / stride)."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(self.addition(self.bn2(self.conv2(hidden)) + shortcut))


class ResNetV1(nn.Module):
    """ResNet-8, 20, 32, 44 or 56: 75,290, 269,722, 464,154, 658,586 or 853,018 parameters with 10 classes.

    Three stages of (depth - 2) / 6 blocks each. The places for noise are ``bn1`` and every block's ``addition``, all
    before a ReLU. Source: He et al. 2016, section 4.2; widths as in Learn2Perturb.

    Args:
        depth: number of layers with weights.
        width_multiplier: factor of the stages' widths 16, 32 and 64.
        num_classes: number of logits.
        channels: number of channels of the images.
        mean: per-channel mean for the normalisation layer; none by default.
        std: per-channel std, given together with ``mean``.

    Raises:
        SettingError: if there is no network of that depth or width, the number of classes is below 2 or of channels
            below 1, only one of mean and std is given, or :class:`Normalize` refuses them.
    """

    def __init__(
        self,
        depth: Literal[8, 20, 32, 44, 56] = 20,
        width_multiplier: float = 1.0,
        num_classes: int = 10,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        require(depth in (8, 20, 32, 44, 56), "depth", depth, "give 8, 20, 32, 44 or 56")
        whole = width_multiplier > 0 and 16 * width_multiplier % 1 == 0
        require(whole, "width_multiplier", width_multiplier, "give a positive multiple of 1/16")
        require(num_classes >= 2, "num_classes", num_classes, "give at least 2 classes")
        require(channels >= 1, "channels", channels, "give those of the images, at least 1")
        widths = [int(width * width_multiplier) for width in (16, 32, 64)]
        self.normalize = normalize_or_identity(mean, std)
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for stage, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False), start=1):
            blocks = [PaddedBlock(before, width, 1 if stage == 1 else 2)]
            blocks += [PaddedBlock(width, width, 1) for _ in range((depth - 2) // 6 - 1)]
            self.add_module(f"stage{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(widths[-1], num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.kaiming_normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, K)."""
        hidden = F.relu(self.bn1(self.conv1(self.normalize(x))))
        for stage in range(1, 4):
            hidden = self.get_submodule(f"stage{stage}")(hidden)
        logits: Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(hidden, 1), 1))
        return logits
