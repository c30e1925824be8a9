"""Data sets as LightningDataModules, one file each; all derive from :class:`ImageDataModule`."""

from datamodules.arrays import Arrays
from datamodules.augmentation import CropAndFlip
from datamodules.base import ImageDataModule
from datamodules.cifar import CIFAR10, CIFAR100
from datamodules.cifar10_c import CIFAR10C
from datamodules.digits import Digits
from datamodules.doubled import DoubledCIFAR10, DoubledDigits
from datamodules.fashion_mnist import FashionMNIST
from datamodules.image_folder import ImageFolder
from datamodules.mnist import MNIST
from datamodules.mnist_c import MNISTC
from datamodules.organ_a_mnist import OrganAMNIST
from datamodules.semi_supervised import SemiSupervised
from datamodules.svhn import SVHN
from datamodules.table import Table
from datamodules.tiny_imagenet import TinyImageNet
from datamodules.watermarked import WatermarkedDigits, WatermarkedMNIST

__all__ = [
    "CIFAR10",
    "CIFAR10C",
    "CIFAR100",
    "MNIST",
    "MNISTC",
    "SVHN",
    "Arrays",
    "CropAndFlip",
    "Digits",
    "DoubledCIFAR10",
    "DoubledDigits",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFolder",
    "OrganAMNIST",
    "SemiSupervised",
    "Table",
    "TinyImageNet",
    "WatermarkedDigits",
    "WatermarkedMNIST",
]
