"""Classifiers and generators; normalisation is a classifier's first layer, so inputs are always in [0, 1]."""

from robust.networks.dm import DMLarge, DMSmall
from robust.networks.generators import BudgetGenerator
from robust.networks.noise import Noisy, PerturbationInjection, injections, switch_noise, without_noise
from robust.networks.normalize import Normalize
from robust.networks.resnet import ResNet18
from robust.networks.resnet_v1 import ResNetV1
from robust.networks.small_cnn import SmallCNN

__all__ = [
    "BudgetGenerator",
    "DMLarge",
    "DMSmall",
    "Noisy",
    "Normalize",
    "PerturbationInjection",
    "ResNet18",
    "ResNetV1",
    "SmallCNN",
    "injections",
    "switch_noise",
    "without_noise",
]
