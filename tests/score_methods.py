"""The methods of the robustness framework, small enough for the testers."""

import pytest
import torch
from torch import nn

from robust.networks import Autoencoder
from tests.testers import ROOT

METHODS = [
    "robustness_score",
    pytest.param("cross_lipschitz", marks=pytest.mark.slow),  # covers nothing that the others do not
    "wasserstein_autoencoder",
    "on_manifold_robustness",
    "on_manifold_adversarial_training",
]


class SmallAutoencoder(Autoencoder):
    """A network without batch normalisation, whose statistics differ between processes."""

    def __init__(self) -> None:
        super().__init__(width=1, code_size=3)
        self.encoder = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(49, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 784), nn.Unflatten(1, (1, 28, 28)), nn.Sigmoid())


def autoencoder_checkpoint(folder):
    """A checkpoint as the training of the autoencoder writes it."""
    torch.manual_seed(0)
    path = folder / "autoencoder.ckpt"
    torch.save({"state_dict": {f"autoencoder.{name}": w for name, w in SmallAutoencoder().state_dict().items()}}, path)
    return path


def small(method, folder):
    """Arguments of ``fit``: the method's config for Digits, made small."""
    settings = [
        f"--config={ROOT / 'configs' / method / 'digits.yaml'}",
        "--data.batch_size=16",
        "--data.eval_batch_size=64",
        "--trainer.max_epochs=4",
        "--trainer.limit_train_batches=4",
        "--trainer.callbacks=null",
    ]
    if method == "robustness_score":
        settings += ["--model.warmup_epochs=1", "--model.generator_epochs=1", "--model.generator.width=2"]
    if method == "wasserstein_autoencoder":
        settings += ["--model.pretraining_batches=2", "--model.input_noise=0.1"]
    else:
        settings += ["--model.classifier.width=2", "--model.classifier.dropout=0.5"]
    if method not in ("robustness_score", "cross_lipschitz"):
        settings.append(f"--model.autoencoder={__name__}.SmallAutoencoder")
    if method.startswith("on_manifold"):
        settings.append(f"--model.autoencoder_checkpoint={autoencoder_checkpoint(folder)}")
    if method == "on_manifold_adversarial_training":
        settings.append("--model.attack.steps=2")
    return settings
