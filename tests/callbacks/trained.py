"""A small network to evaluate, and a quiet Trainer. ``python -m tests.callbacks.trained`` trains and stores it.

Its weights are in network.npz, in float16, so that the evaluations measure the same network on every machine.
"""

from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from datamodules import Digits
from lightning_modules.base import RobustClassifier

FILE = Path(__file__).with_name("network.npz")


class Plain(RobustClassifier):
    """Standard training."""

    def training_step(self, batch, batch_idx):
        self.descend(nn.functional.cross_entropy(self(batch[0]), batch[1]), *self.all_optimizers())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


class Small(nn.Sequential):
    """The network, as a class that the command line can name."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 10))


small = Small


def trainer_with(*callbacks, **settings):
    return pl.Trainer(
        accelerator="cpu", callbacks=list(callbacks), enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, logger=False, **settings
    )  # fmt: skip


def stored():
    """A network that is correct on most test images, and misclassifies them under attack."""
    network = small()
    with np.load(FILE) as arrays:
        network.load_state_dict({name: torch.from_numpy(arrays[name]).float() for name in arrays.files})
    return Plain(network, epsilon=0.05).eval()


def main():
    """Train for three epochs."""
    torch.manual_seed(0)
    module = Plain(small(), epsilon=0.05)
    trainer_with(max_epochs=3, limit_val_batches=0).fit(module, datamodule=Digits(batch_size=32))
    weights = module.classifier.state_dict()
    np.savez_compressed(FILE, **{name: w.numpy().astype(np.float16) for name, w in weights.items()})


def images():
    """All 299 test images and their labels."""
    return Digits().images("test")[torch.arange(299)]


if __name__ == "__main__":
    main()


def measured(module, *callbacks, **data):
    """Metrics of a test on the digits."""
    return trainer_with(*callbacks).test(module, Digits(**{"eval_batch_size": 64, **data}), verbose=False)[0]
