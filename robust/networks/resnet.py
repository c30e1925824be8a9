"""ResNet-18 for small images, the network of adversarial training on CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust.errors import require
from robust.networks.normalize import normalize_or_identity


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and a shortcut, 1x1 where the shape changes (He et al. 2016)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels))
        self.addition = nn.Identity()  # a name for the sum, where noise may be inserted

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, channels, H / stride, W / stride)."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.addition(self.bn2(self.conv2(hidden)) + self.shortcut(x)))


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem of stride 1 and global average pooling: 11,173,962 parameters with 10 classes.

    Source: the CIFAR variant of He et al. 2016, as in TRADES and Learn2Perturb ("ResNet-V2(18)", though its
    activations come after the additions).

    Args:
        num_classes: number of logits.
        channels: number of channels of the images.
        mean: per-channel mean for the normalisation layer; none by default.
        std: std of each channel, given together with ``mean``.

    Raises:
        SettingError: if the number of classes is below 2 or of channels below 1, only one of mean and std is given, or
            :class:`Normalize` refuses them.
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        require(num_classes >= 2, "num_classes", num_classes, "give at least 2 classes")
        require(channels >= 1, "channels", channels, "give those of the images, at least 1")
        self.normalize = normalize_or_identity(mean, std)
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = (64, 128, 256, 512)
        for stage, (before, width) in enumerate(zip((64, *widths), widths, strict=False), start=1):
            blocks = (BasicBlock(before, width, 1 if stage == 1 else 2), BasicBlock(width, width, 1))
            self.add_module(f"stage{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, K)."""
        hidden = F.relu(self.bn1(self.conv1(self.normalize(x))))
        for stage in range(1, 5):
            hidden = self.get_submodule(f"stage{stage}")(hidden)
        logits: Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(hidden, 1), 1))
        return logits
