"""Data sets as LightningDataModules: one file each, on the common ground of :class:`ImageDataModule`."""

from datamodules.base import ImageDataModule
from datamodules.digits import Digits
from datamodules.mnist import MNIST

__all__ = ["MNIST", "Digits", "ImageDataModule"]
