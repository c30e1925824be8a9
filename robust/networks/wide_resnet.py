"""Networks whose normalisation and activation come before the convolution (He et al. 2016b): wide, and of 18 layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust.errors import require
from robust.networks.normalize import normalize_or_identity


class PreActivationBlock(nn.Module):
    """Twice batch normalisation, ReLU and a 3x3 convolution, and a shortcut: 1x1 on the activated input, or none.

    Args:
        in_channels: number of channels of the input.
        channels: number of channels of the output.
        stride: stride of the first convolution.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        self.addition = nn.Identity()  # a name for the sum, where noise may be inserted

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, channels, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        hidden = self.conv2(F.relu(self.bn2(self.conv1(active))))
        summed: Tensor = self.addition(hidden + (x if self.shortcut is None else self.shortcut(active)))
        return summed


class _PreActivationNetwork(nn.Module):
    """A 3x3 stem, stages of blocks, normalisation, ReLU, global average pooling, a linear layer."""

    def __init__(
        self,
        stem: int,
        widths: Sequence[int],
        blocks: int,
        num_classes: int,
        channels: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        super().__init__()
        require(num_classes >= 2, "num_classes", num_classes, "give at least 2 classes")
        require(channels >= 1, "channels", channels, "give those of the images, at least 1")
        self.normalize = normalize_or_identity(mean, std)
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        for index, (before, width) in enumerate(zip((stem, *widths), widths, strict=False)):
            first = PreActivationBlock(before, width, 1 if index == 0 else 2)
            self.stages.append(nn.Sequential(first, *(PreActivationBlock(width, width, 1) for _ in range(blocks - 1))))
        self.bn = nn.BatchNorm2d(widths[-1])
        self.linear = nn.Linear(widths[-1], num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to logits (B, K)."""
        hidden = F.relu(self.bn(self.stages(self.conv1(self.normalize(x)))))
        logits: Tensor = self.linear(torch.flatten(F.adaptive_avg_pool2d(hidden, 1), 1))
        return logits


class WideResNet(_PreActivationNetwork):
    """Wide residual network (Zagoruyko & Komodakis 2016): WRN-28-10 has 36,479,194 parameters with 10 classes.

    Args:
        depth: number of layers, 6 n + 4.
        width: multiple of 16, 32 and 64 channels.
        num_classes: number of logits.
        channels: number of channels of the images.
        mean: per-channel mean for the normalisation layer; none by default.
        std: per-channel std, given together with ``mean``.

    Raises:
        SettingError: if the depth is not 6 n + 4 and at least 10, width, classes or channels are too few, only one of
            mean and std is given, or :class:`Normalize` refuses them.
    """

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        num_classes: int = 10,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        require(depth >= 10 and depth % 6 == 4, "depth", depth, "give 6 n + 4, such as 16, 28 or 34")
        require(width >= 1, "width", width, "give at least 1")
        widths = [width * base for base in (16, 32, 64)]
        super().__init__(16, widths, (depth - 4) // 6, num_classes, channels, mean, std)


class PreActResNet18(_PreActivationNetwork):
    """Pre-activation ResNet-18 with a 3x3 stem of stride 1: 11,269,640 parameters with 200 classes.

    For Tiny-ImageNet in multi-norm training: the network that the published code calls ResNet-50 there has 18 layers
    (and an error in its blocks).

    Args:
        num_classes: number of logits.
        channels: number of channels of the images.
        mean: per-channel mean for the normalisation layer; none by default.
        std: per-channel std, given together with ``mean``.

    Raises:
        SettingError: if the number of classes is below 2 or of channels below 1, only one of mean and std is given, or
            :class:`Normalize` refuses them.
    """

    def __init__(
        self,
        num_classes: int = 200,
        channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(64, (64, 128, 256, 512), 2, num_classes, channels, mean, std)
