"""Classifiers and generators; normalisation is a classifier's first layer, so inputs are always in [0, 1]."""

from robust.networks.dm import DMLarge, DMSmall
from robust.networks.generators import BudgetGenerator
from robust.networks.noise_generator import NoiseGenerator
from robust.networks.normalize import Normalize
from robust.networks.resnet import ResNet18
from robust.networks.small_cnn import SmallCNN
from robust.networks.wide_resnet import PreActResNet18, WideResNet

__all__ = [
    "BudgetGenerator",
    "DMLarge",
    "DMSmall",
    "NoiseGenerator",
    "Normalize",
    "PreActResNet18",
    "ResNet18",
    "SmallCNN",
    "WideResNet",
]
