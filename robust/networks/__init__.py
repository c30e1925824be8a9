"""Classifiers and generators; normalisation is a classifier's first layer, so inputs are always in [0, 1]."""

from robust.networks.adversarial_generator import AdversarialGenerator
from robust.networks.autoencoder import Autoencoder, load_autoencoder
from robust.networks.dm import DMLarge, DMSmall
from robust.networks.generators import BudgetGenerator
from robust.networks.normalize import Normalize
from robust.networks.resnet import ResNet18
from robust.networks.resnet_v1 import ResNetV1
from robust.networks.rf_classifier import RFClassifier
from robust.networks.small_cnn import SmallCNN

__all__ = [
    "AdversarialGenerator",
    "Autoencoder",
    "BudgetGenerator",
    "DMLarge",
    "DMSmall",
    "Normalize",
    "RFClassifier",
    "ResNet18",
    "ResNetV1",
    "SmallCNN",
    "load_autoencoder",
]
