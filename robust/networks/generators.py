"""Generators: networks that produce the non-uniform part of a threat model or a defence."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
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
        initial_output: value of the sigmoid at the start. At -log(alpha_low) / (log(alpha_high) - log(alpha_low))
            the initial budgets already have the target volume: 0.5 for (0.5, 2), 0.75 for (0.125, 2).
        share_channels: one budget for all channels of a pixel.
        spread: std of the sigmoid's inputs over the pixels of each image; a learned number is added to them. None, as
            in the paper, leaves them free: they can grow until the sigmoid is saturated at every pixel, so that the
            budgets no longer change.

    Raises:
        SettingError: if ``initial_output`` is not strictly between 0 and 1, a size in ``image_shape`` is below 1, or
            ``spread`` is not positive.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        stride: Literal[1, 2] = 2,
        initial_output: float = 0.5,
        share_channels: bool = False,
        spread: float | None = None,
    ) -> None:
        super().__init__()
        require(spread is None or spread > 0, "spread", spread, "give a positive number, or null for the paper's")
        fits = min(image_shape) >= 1
        require(fits, "image_shape", tuple(image_shape), "give (channels, height, width) of the images, at least 1")
        channels, height, width = image_shape
        self.image_shape = tuple(image_shape)
        self.output_shape = (1 if share_channels else channels, height, width)
        narrow = [(side - 1) // stride + 1 for side in (height, width)]
        narrow = [(side - 1) // stride + 1 for side in narrow]
        last = nn.Linear(8 * narrow[0] * narrow[1], math.prod(self.output_shape))
        _start_at(initial_output, last)
        self.spread = spread
        self.bias = None if spread is None else nn.Parameter(last.bias[0].detach().clone())
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 4, 3, stride=stride, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3, stride=stride, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            last,
        )

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
        values = self.layers(x)
        if self.spread is not None:
            assert self.bias is not None
            values = self.spread * F.layer_norm(values, values.shape[1:]) + self.bias
        return torch.sigmoid(values).view(-1, *self.output_shape).expand_as(x)


class ConvolutionalBudgetGenerator(nn.Module):
    """Maps an image of any size to one number in (0, 1) for each pixel, as :class:`BudgetGenerator` does.

    In contrast to :class:`BudgetGenerator`, no weight belongs to a single pixel, so that the generator does not first
    learn one map for all images.
    Two 5x5 convolutions, the second with dilation 2, give features; a linear layer of their mean over all pixels, the
    context of the image, is added to each pixel's; a 5x5 and a 3x3 convolution and a sigmoid follow. The padding
    repeats the outermost pixels, since zeros would tell a pixel how far from the edge it is. 3,569 parameters on grey
    images at width 8, whatever their size. With stride 2 the features have half the images' height and width, which
    takes about a quarter of the time; the last convolution gives the budgets of four pixels at once.

    Args:
        channels: number of channels of the images.
        width: channels of the features.
        stride: stride of the first convolution, 1 or 2.
        initial_output: value of the sigmoid at the start; see :class:`BudgetGenerator`.
        share_channels: one budget for all channels of a pixel.

    Raises:
        SettingError: if ``initial_output`` is not strictly between 0 and 1, a number of channels is below 1, or
            ``stride`` is neither 1 nor 2.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 8,
        initial_output: float = 0.5,
        share_channels: bool = False,
        stride: Literal[1, 2] = 1,
    ) -> None:
        super().__init__()
        require(channels >= 1, "channels", channels, "give the images' number of channels, at least 1")
        require(width >= 1, "width", width, "give the features' number of channels, at least 1")
        require(stride in (1, 2), "stride", stride, "give 1 or 2")
        self.channels, self.stride = channels, stride
        last = _convolution(width, (1 if share_channels else channels) * stride**2, 3)
        _start_at(initial_output, last)
        self.near = nn.Sequential(_convolution(channels, width, 5, stride=stride), nn.ReLU())
        self.wide = nn.Sequential(_convolution(width, width, 5, dilation=2 // stride), nn.ReLU())
        self.context = nn.Linear(width, width)
        self.head = nn.Sequential(nn.ReLU(), _convolution(width, width, 5), nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to outputs (B, C, H, W) in (0, 1).

        Raises:
            SettingError: if the images have another number of channels.
        """
        remedy = f"the images have {x.shape[1]} channels; give that"
        require(x.shape[1] == self.channels, "channels", self.channels, remedy)
        near = self.near(x).contiguous(memory_format=torch.channels_last)  # saves a third of the time on a CPU
        features = self.wide(near)
        context = self.context(features.mean((2, 3)))[:, :, None, None]
        values = F.pixel_shuffle(self.head(features + context), self.stride)[..., : x.shape[2], : x.shape[3]]
        return torch.sigmoid(values).expand_as(x)


def _convolution(inputs: int, outputs: int, side: int, dilation: int = 1, stride: int = 1) -> nn.Conv2d:
    """A convolution from images of any size to that size over the stride; it repeats the outermost pixels."""
    padding = dilation * (side // 2)
    return nn.Conv2d(inputs, outputs, side, stride, padding, dilation, padding_mode="replicate")


def _start_at(initial_output: float, last: nn.Linear | nn.Conv2d) -> None:
    """Set the bias of a generator's last layer to the number whose sigmoid is ``initial_output``."""
    require(0 < initial_output < 1, "initial_output", initial_output, "give a value strictly between 0 and 1")
    assert last.bias is not None
    nn.init.constant_(last.bias, math.log(initial_output / (1 - initial_output)))
