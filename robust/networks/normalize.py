"""Per-channel normalisation as a network's first layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robust.errors import require


class Normalize(nn.Module):
    """(x - mean) / std per channel, so that every epsilon outside the network is in units of [0, 1].

    >>> Normalize([0.5], [0.25])(torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3))
    tensor([[[[-2.,  0.,  2.]]]])

    Args:
        mean: one value a channel, in [0, 1].
        std: one positive value a channel.

    Raises:
        SettingError: if the lengths differ or a std is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        require(len(mean) == len(std), "std", list(std), f"give {len(mean)} values, one for each of mean's channels")
        require(all(s > 0 for s in std), "std", list(std), "give positive values")
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images of shape (B, C, H, W)."""
        return (x - self.mean) / self.std


def normalisation(mean: Sequence[float] | None, std: Sequence[float] | None) -> list[nn.Module]:
    """The first layers of a network as a list, which is empty without mean and std.

    Raises:
        SettingError: if only one of the two is given, their lengths differ, or a std is not positive.
    """
    require((mean is None) == (std is None), "std", std, "give mean and std together, or neither")
    return [] if mean is None or std is None else [Normalize(mean, std)]


def normalize_or_identity(mean: Sequence[float] | None, std: Sequence[float] | None) -> nn.Module:
    """The first layer of a network, which is the identity without mean and std.

    Raises:
        SettingError: as :func:`normalisation`.
    """
    return next(iter(normalisation(mean, std)), nn.Identity())


class Normalized(nn.Sequential):
    """A network behind its normalisation, for networks that expect normalised images, such as torchvision's.

    >>> Normalized(nn.Flatten(), [0.5], [0.25])(torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3))
    tensor([[-2.,  0.,  2.]])

    Args:
        network: network from normalised images (B, C, H, W) to logits (B, K).
        mean: one value a channel, in [0, 1].
        std: one positive value a channel.

    Raises:
        SettingError: in the cases of :class:`Normalize`.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(Normalize(mean, std), network)
