"""The networks of ``networks.py``: ours, small ones of torchvision and timm, and some that are written here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn
from torchvision import models

from robust.networks import CNN7, DMLarge, DMSmall, PlainCNN, ResNetB, ResNetV1, WideResNet


class Case(NamedTuple):
    """A network.

    Attributes:
        name: name in the tables.
        build: builds it for color images of 32 x 32 pixels.
        crown: whether the method ``crown`` is measured.
        trained: whether ``gaps.py`` trains it, which takes three minutes of one core at most.
    """

    name: str
    build: Callable[[], nn.Module]
    crown: bool = False
    trained: bool = False


class SqueezeExcite(nn.Module):
    """Channels weighed by a small network of their means (Hu et al. 2018), around a residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.gate = nn.Sequential(
            nn.Linear(channels, channels // 4), nn.ReLU(), nn.Linear(channels // 4, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        h = self.body(x)
        return torch.relu(x + h * self.gate(h.mean((2, 3)))[:, :, None, None])


def lenet() -> nn.Module:
    """LeNet-5 with ReLU and max-pooling."""
    features = [nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    head = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*features, nn.Flatten(), *head)


def squeeze_excite() -> nn.Module:
    """Two squeeze-and-excite blocks."""
    stem = [nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), SqueezeExcite(16), SqueezeExcite(16)]
    return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def vgg() -> nn.Module:
    """VGG-11 with batch normalisation and one linear layer."""
    network = models.vgg11_bn(num_classes=10)
    network.avgpool, network.classifier = nn.Identity(), nn.Linear(512, 10)
    return network


def densenet() -> nn.Module:
    """A DenseNet of three dense blocks."""
    return models.DenseNet(growth_rate=12, block_config=(2, 2, 2), num_init_features=16, num_classes=10)


ZOO = [
    Case("`DMSmall`", lambda: DMSmall((3, 32, 32)), crown=True, trained=True),
    Case("`DMLarge`", lambda: DMLarge((3, 32, 32))),
    Case("`PlainCNN`", lambda: PlainCNN((3, 32, 32)), trained=True),
    Case("`CNN7`", lambda: CNN7((3, 32, 32))),
    Case("`ResNetB`, 2 blocks", ResNetB, crown=True, trained=True),
    Case("`ResNetB`, 4 blocks, batch-norm", lambda: ResNetB(blocks=4, width=16, batch_norm=True), trained=True),
    Case("`ResNetV1`, depth 8", lambda: ResNetV1(8), trained=True),
    Case("`ResNetV1`, depth 20", lambda: ResNetV1(20), trained=True),
    Case("`WideResNet`, depth 10", lambda: WideResNet(depth=10, width=1), trained=True),
    Case("LeNet with max-pooling", lenet, crown=True, trained=True),
    Case("squeeze-and-excite blocks", squeeze_excite, trained=True),
    Case("torchvision `resnet18`", lambda: models.resnet18(num_classes=10), trained=True),
    Case("torchvision `mobilenet_v2`", lambda: models.mobilenet_v2(num_classes=10)),
    Case("torchvision `mobilenet_v3_small`", lambda: models.mobilenet_v3_small(num_classes=10), trained=True),
    Case("torchvision `squeezenet1_1`", lambda: models.squeezenet1_1(num_classes=10), trained=True),
    Case("torchvision `DenseNet`, 6 layers", densenet, trained=True),
    Case("torchvision `vgg11_bn`, one linear layer", vgg),
    Case("timm `test_resnet`", lambda: timm.create_model("test_resnet", num_classes=10), trained=True),
    Case("timm `test_efficientnet`", lambda: timm.create_model("test_efficientnet", num_classes=10), trained=True),
    Case("timm `test_vit`", lambda: timm.create_model("test_vit", num_classes=10, img_size=32)),
]
