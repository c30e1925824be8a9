"""The autoencoder whose decoder stands for the data manifold."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robust.checkpoints import load_part, read_part
from robust.errors import require


class Autoencoder(nn.Module):
    """Convolutional encoder and decoder of the Wasserstein autoencoder, with batch normalisation.

    On 28x28 grey images with 8 code dimensions: encoder 11,026,056 parameters, decoder 10,943,745. Weights start
    normal with std 0.01. Source: Tolstikhin et al. 2018, MNIST network; with padding 1 instead of TensorFlow's
    "same" the encoder's last map is 1x1 instead of 2x2.

    Args:
        image_shape: (channels, height, width), height and width multiples of 4 and at least 16.
        code_size: number of code dimensions.
        width: channels of the first convolution, 128 in the source; 32 for small copies.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(self, image_shape: tuple[int, int, int] = (1, 28, 28), code_size: int = 8, width: int = 128) -> None:
        super().__init__()
        channels, height, rows = image_shape
        fits = channels >= 1 and height % 4 == 0 and rows % 4 == 0 and min(height, rows) >= 16
        remedy = "give (channels, height, width), multiples of 4 of at least 16 pixels a side"
        require(fits, "image_shape", tuple(image_shape), remedy)
        require(code_size >= 1, "code_size", code_size, "give at least 1")
        require(width >= 1, "width", width, "give at least 1 channel")
        self.code_size = code_size
        layers: list[nn.Module] = []
        for before, after in zip((channels, width, 2 * width, 4 * width), (1, 2, 4, 8), strict=True):
            layers += [nn.Conv2d(before, after * width, 4, 2, padding=1), nn.BatchNorm2d(after * width), nn.ReLU()]
        flat = 8 * width * (height // 16) * (rows // 16)
        self.encoder = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, code_size))
        start = (8 * width, height // 4, rows // 4)
        self.decoder = nn.Sequential(
            nn.Linear(code_size, start[0] * start[1] * start[2]),
            nn.Unflatten(1, start),
            nn.ReLU(),
            nn.ConvTranspose2d(8 * width, 4 * width, 4, 2, padding=1),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ZeroPad2d((1, 2, 1, 2)),
            nn.Conv2d(2 * width, channels, 4),
            nn.Sigmoid(),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.01)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.to(memory_format=torch.channels_last)  # saves a quarter of the time on a CPU

    def encode(self, x: Tensor) -> Tensor:
        """Codes (B, code_size) of images (B, C, H, W)."""
        codes: Tensor = self.encoder(x)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] of codes (B, code_size)."""
        images: Tensor = self.decoder(codes)
        return images

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions (B, C, H, W) of images (B, C, H, W)."""
        return self.decode(self.encode(x))


def load_autoencoder(autoencoder: nn.Module, path: str, setting: str) -> None:
    """Take the weights of the module ``autoencoder`` from a checkpoint of its training.

    Args:
        autoencoder: network of the architecture that was trained.
        path: checkpoint of ``WassersteinAutoencoder``.
        setting: name of the path's setting, for the errors.

    Raises:
        SettingError: if the file is absent, no such checkpoint, or of another network.
    """
    load_part(autoencoder, path, "autoencoder", setting)


def trained_autoencoder(path: str, setting: str) -> Autoencoder:
    """The :class:`Autoencoder` of a checkpoint of its training; its weights' shapes tell its architecture.

    Args:
        path: checkpoint of ``WassersteinAutoencoder``, trained on square images.
        setting: name of the path's setting, for the errors.

    Raises:
        SettingError: if the file is absent, no such checkpoint, or of another network.
    """
    _, weights = read_part(path, "autoencoder", setting)
    remedy = "its autoencoder is of another kind, or not of square images; give the network too"
    require("encoder.0.weight" in weights and "decoder.0.weight" in weights, setting, path, remedy)
    width, channels = weights["encoder.0.weight"].shape[:2]
    features, code_size = weights["decoder.0.weight"].shape  # 8 * width channels on a quarter of each side
    side = 4 * math.isqrt(features // (8 * width))
    autoencoder = Autoencoder((channels, side, side), code_size, width)
    load_autoencoder(autoencoder, path, setting)
    return autoencoder
