"""Classifiers and generators; normalisation is a classifier's first layer, so inputs are always in [0, 1]."""

from robust.networks.adversarial_generator import AdversarialGenerator
from robust.networks.autoencoder import Autoencoder, load_autoencoder, trained_autoencoder
from robust.networks.cnn7 import CNN7
from robust.networks.dm import DMLarge, DMSmall
from robust.networks.generators import BudgetGenerator, ConvolutionalBudgetGenerator
from robust.networks.initialisation import initialise_for_intervals
from robust.networks.noise import (
    NoiseSource,
    Noisy,
    PerturbationInjection,
    injections,
    noise_sources,
    switch_noise,
    without_noise,
)
from robust.networks.noise_generator import NoiseGenerator
from robust.networks.noisy_weights import BayesianWeights, GaussianWeight, NoisyWeights, WeightNoise, divergence
from robust.networks.normalize import Normalize, Normalized
from robust.networks.plain_cnn import PlainCNN
from robust.networks.resnet import ResNet18
from robust.networks.resnet_b import ResNetB
from robust.networks.resnet_v1 import ResNetV1
from robust.networks.small_cnn import SmallCNN
from robust.networks.wide_resnet import PreActResNet18, WideResNet

__all__ = [
    "CNN7",
    "AdversarialGenerator",
    "Autoencoder",
    "BayesianWeights",
    "BudgetGenerator",
    "ConvolutionalBudgetGenerator",
    "DMLarge",
    "DMSmall",
    "GaussianWeight",
    "NoiseGenerator",
    "NoiseSource",
    "Noisy",
    "NoisyWeights",
    "Normalize",
    "Normalized",
    "PerturbationInjection",
    "PlainCNN",
    "PreActResNet18",
    "ResNet18",
    "ResNetB",
    "ResNetV1",
    "SmallCNN",
    "WeightNoise",
    "WideResNet",
    "divergence",
    "initialise_for_intervals",
    "injections",
    "load_autoencoder",
    "noise_sources",
    "switch_noise",
    "trained_autoencoder",
    "without_noise",
]
