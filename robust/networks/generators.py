"""Generators: networks that produce the non-uniform part of a threat model or a defence."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from robust.errors import require


class BudgetGenerator(nn.Module):
    """Maps an image to one number in (0, 1) for each pixel, from which its perturbation budget is made.

    Two 3x3 convolutions (4 and 8 channels), a linear layer and a sigmoid. Source: contextual budgets, Sec. 3.3 and
    Appendix A, which leaves stride and initialisation open. Stride 2 is the 2-layer network of CROWN-IBP: 0.31 M
    parameters on MNIST and 1.6 M on CIFAR-10, against 4.9 M and 25 M with stride 1. Weights start as PyTorch's do.

    Args:
        image_shape: (channels, height, width).
        stride: stride of both convolutions.
        initial_output: what the sigmoid gives at the start. At -log(alpha_low) / (log(alpha_high) - log(alpha_low))
            the initial budgets already have the target volume: 0.5 for (0.5, 2), 0.75 for (0.125, 2).
        share_channels: one budget for all channels of a pixel.

    Raises:
        SettingError: if ``initial_output`` is not strictly between 0 and 1.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        stride: Literal[1, 2] = 2,
        initial_output: float = 0.5,
        share_channels: bool = False,
    ) -> None:
        super().__init__()
        require(0 < initial_output < 1, "initial_output", initial_output, "give a value strictly between 0 and 1")
        fits = min(image_shape) >= 1
        require(fits, "image_shape", tuple(image_shape), "give (channels, height, width) of the images, at least 1")
        channels, height, width = image_shape
        self.image_shape = tuple(image_shape)
        self.output_shape = (1 if share_channels else channels, height, width)
        narrow = [(side - 1) // stride + 1 for side in (height, width)]
        narrow = [(side - 1) // stride + 1 for side in narrow]
        last = nn.Linear(8 * narrow[0] * narrow[1], math.prod(self.output_shape))
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 4, 3, stride=stride, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3, stride=stride, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            last,
        )
        with torch.no_grad():
            last.bias.fill_(math.log(initial_output / (1 - initial_output)))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to outputs (B, C, H, W) in (0, 1).

        Raises:
            SettingError: if the images are not of the generator's shape.
        """
        require(
            tuple(x.shape[1:]) == self.image_shape,
            "image_shape",
            self.image_shape,
            f"the images have shape {tuple(x.shape[1:])}; give that",
        )
        return torch.sigmoid(self.layers(x)).view(-1, *self.output_shape).expand_as(x)
