"""Networks and data sets of a user that cannot work."""

import torch
from torch import nn

from datamodules import ImageDataModule
from datamodules.loading import TensorImages


class Linear(nn.Module):
    """10 logits of images of 28x28 pixels."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, x):
        return self.layer(x.flatten(1))


class GivesTuple(Linear):
    def forward(self, x):
        return super().forward(x), x


class GivesTupleInTraining(Linear):
    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class WiderInTraining(Linear):
    def forward(self, x):
        logits = super().forward(x)
        return torch.cat([logits, logits], 1) if self.training else logits


class GivesNaN(Linear):
    def forward(self, x):
        return super().forward(x) * torch.nan


class Normalized(nn.Sequential):
    """A network that normalises over the batch."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 10), nn.BatchNorm1d(10))


class HasABug(Linear):
    def forward(self, x):
        return {"logits": super().forward(x)}["logit"]


def build(width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


def text() -> str:
    return "no network"


BUILT = build()


class NoImages(ImageDataModule):
    num_classes, image_shape = 10, (1, 28, 28)

    def load(self, split):
        return TensorImages(torch.zeros(0, 1, 28, 28, dtype=torch.uint8), torch.zeros(0, dtype=torch.long), 10)


class FewLabels(ImageDataModule):
    num_classes, image_shape = 10, (1, 28, 28)

    def load(self, split):
        return TensorImages(torch.zeros(9, 1, 28, 28, dtype=torch.uint8), torch.zeros(8, dtype=torch.long), 10)


class FloatImages(ImageDataModule):
    num_classes, image_shape = 10, (1, 28, 28)

    def load(self, split):
        return TensorImages(torch.zeros(9, 1, 28, 28), torch.zeros(9, dtype=torch.long), 10)
