"""Wasserstein Auto-Encoders (Tolstikhin, Bousquet, Gelly, Schoelkopf 2018) with the MMD penalty (Algorithm 2).

| symbol | here | what |
| --- | --- | --- |
| c(x, y) | ``reconstruction`` | 0.05 times the squared distance, summed over pixels |
| lambda | ``mmd_weight`` | weight of the penalty |
| D_Z | ``maximum_mean_discrepancy`` | discrepancy between codes and samples of the prior N(0, sigma_z^2 I) |

Unlike the authors' code, the encoder is pre-trained on the training batches, not on 1,000 images at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Adam
from torchmetrics import MeanMetric

from lightning_modules.base import Batch, TrainingModule
from robust.errors import NonFiniteLogitsError, require
from robust.networks import Autoencoder
from robust.random import shared_randn, truncated_normal_like

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class WassersteinAutoencoder(TrainingModule):
    """Trains an autoencoder, without labels, so that its codes are distributed like the prior.

    Logs ``<stage>/reconstruction``, the mean squared l2 distance between an image and its reconstruction.

    Args:
        autoencoder: encoder and decoder.
        mmd_weight: lambda, weight of the penalty.
        prior_std: sigma_z, std of the prior.
        reconstruction_weight: weight of the squared distance.
        input_noise: std of the noise on the encoder's input in training; the noise is truncated at two stds.
        pretraining_batches: number of batches in the first epoch that train the encoder alone, to match the prior's
            mean and covariance.
        optimizer: optimizer of encoder and decoder.
        **settings: settings of :class:`Descent`.

    Raises:
        SettingError: if a setting is out of its range, or the network does not fit the data.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        *,
        mmd_weight: float = 10.0,
        prior_std: float = 1.0,
        reconstruction_weight: float = 0.05,
        input_noise: float = 0.01,
        pretraining_batches: int = 200,
        optimizer: OptimizerCallable = lambda params: Adam(params, lr=1e-3, betas=(0.5, 0.999)),
        **settings: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, **settings)
        require(mmd_weight >= 0, "model.mmd_weight", mmd_weight, "give a weight of 0 or more")
        require(prior_std > 0, "model.prior_std", prior_std, "give a positive std")
        require(
            reconstruction_weight > 0, "model.reconstruction_weight", reconstruction_weight, "give a weight above 0"
        )
        require(input_noise >= 0, "model.input_noise", input_noise, "give a std of 0 or more")
        require(pretraining_batches >= 0, "model.pretraining_batches", pretraining_batches, "give 0 or more")
        self.autoencoder = autoencoder
        self.mmd_weight, self.prior_std = mmd_weight, prior_std
        self.reconstruction_weight, self.input_noise = reconstruction_weight, input_noise
        self.pretraining_batches = pretraining_batches
        self.squared_distance = nn.ModuleDict({stage: MeanMetric() for stage in ("val", "test")})

    @property
    def partially_used(self) -> list[str]:
        """The decoder, which pre-training does not use."""
        return ["decoder"] if self.pretraining_batches > 0 else []

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions (B, C, H, W) of images (B, C, H, W)."""
        reconstructed: Tensor = self.autoencoder(x)
        return reconstructed

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 2: minimise the reconstruction cost plus lambda times the discrepancy of all codes."""
        x, _ = batch
        remedy = "a single code has no covariance; give a batch_size of 2 or more, and drop_last=True to a loader"
        require(len(x) > 1, "data", f"a training batch of {len(x)} image", remedy)
        codes = self.autoencoder.encode(x + self.input_noise * truncated_normal_like(x, 2.0))
        all_codes = self.all_gather(codes, sync_grads=True)  # the discrepancy is not a sum over images
        assert isinstance(all_codes, Tensor)
        all_codes = all_codes.reshape(-1, codes.shape[1]).to(x.dtype)  # squares of distances need more than bf16
        if self.current_epoch == 0 and batch_idx < self.pretraining_batches:
            loss = moment_distance(all_codes, self.prior_std)
        else:
            prior_codes = self.prior_std * shared_randn(all_codes.shape, codes)
            penalty = maximum_mean_discrepancy(all_codes, prior_codes, self.prior_std)
            loss = self.reconstruction(x, self.autoencoder.decode(codes)).mean() + self.mmd_weight * penalty
            self.log("train/discrepancy", penalty.detach())
        self.descend(loss, self.all_optimizers()[0])
        self.log("train/loss", loss.detach(), prog_bar=True, sync_dist=True)

    def reconstruction(self, x: Tensor, reconstructed: Tensor) -> Tensor:
        """Reconstruction cost of each image, (B,)."""
        return self.reconstruction_weight * (reconstructed - x).flatten(1).square().sum(1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Squared distance on validation data."""
        self._evaluate(batch[0], "val", f"validation batch {batch_idx}")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Squared distance on test data."""
        self._evaluate(batch[0], "test", f"test batch {batch_idx}")

    def _evaluate(self, x: Tensor, stage: str, name: str) -> None:
        metric = self.squared_distance[stage]
        assert isinstance(metric, MeanMetric)
        distances = (self(x) - x).flatten(1).square().sum(1)
        if not bool(distances.isfinite().all()):  # the metric would skip such distances
            raise NonFiniteLogitsError(f"{name}, autoencoder: got NaN or infinite images; its weights have diverged")
        metric.update(distances)
        self.log(f"{stage}/reconstruction", metric, on_step=False, on_epoch=True, batch_size=len(x), prog_bar=True)

    def setup(self, stage: str) -> None:
        """Refuse prediction, then check the run."""
        require(stage != "predict", "subcommand", "predict", "an autoencoder predicts no classes; use fit or test")
        super().setup(stage)

    def check_shapes(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Check that the autoencoder returns images of the data's shape."""
        self.check_generator("autoencoder", self.autoencoder, image_shape)


def maximum_mean_discrepancy(
    codes: Tensor, prior_codes: Tensor, std: float, scales: Sequence[float] = SCALES
) -> Tensor:
    """Unbiased MMD of two samples, a scalar: inverse multiquadratic kernels C / (C + |a - b|^2), C = 2 s Z sigma_z^2.

    Args:
        codes: codes (B, Z), B at least 2.
        prior_codes: samples of the prior, (B, Z).
        std: sigma_z, std of the prior.
        scales: values of s; the kernel is the sum over them.
    """
    size, base = len(codes), 2 * codes.shape[1] * std**2

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = (a[:, None] - b[None]).square().sum(2)
        return torch.stack([scale * base / (scale * base + squares) for scale in scales]).sum(0)

    within = sum(_off_diagonal_mean(kernel(sample, sample)) for sample in (codes, prior_codes))
    return within - 2 * kernel(codes, prior_codes).sum() / size**2


def moment_distance(codes: Tensor, std: float) -> Tensor:
    """Mean squared distance of the mean and of the covariance of codes (B, Z) to those of N(0, std^2 I), a scalar."""
    mean = codes.mean(0)
    centred = codes - mean
    # without a matrix product, which autocast would compute in bf16
    covariance = (centred[:, :, None] * centred[:, None]).sum(0) / (len(codes) - 1)
    expected = std**2 * torch.eye(codes.shape[1], dtype=codes.dtype, device=codes.device)
    return mean.square().mean() + (covariance - expected).square().mean()


def _off_diagonal_mean(matrix: Tensor) -> Tensor:
    size = len(matrix)
    return (matrix.sum() - matrix.diagonal().sum()) / (size * (size - 1))
