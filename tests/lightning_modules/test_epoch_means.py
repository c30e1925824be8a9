"""Means over an epoch's examples: weighted by examples, and the same in a run that is resumed inside the epoch."""

import pytest
import pytorch_lightning as pl
import torch
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from datamodules import Digits
from lightning_modules import CrossLipschitz
from robust.networks import SmallCNN


def module():
    torch.manual_seed(0)
    return CrossLipschitz(SmallCNN(), optimizer=lambda p: SGD(p, lr=0.01))


def trainer(folder, **settings):
    return pl.Trainer(
        max_epochs=2,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        default_root_dir=folder,
        **settings,
    )


@pytest.mark.thorough_but("4")
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_resumed_run_logs_the_means_of_the_whole_epoch(stop, tmp_path):
    """Regression: they were those of the remaining batches, which schedules may monitor."""
    whole = trainer(tmp_path / "whole", limit_train_batches=4)
    whole.fit(module(), datamodule=Digits(batch_size=8))
    stopped = trainer(tmp_path / "stopped", limit_train_batches=4, max_steps=stop)
    stopped.fit(module(), datamodule=Digits(batch_size=8))
    stopped.save_checkpoint(tmp_path / "stopped.ckpt")
    resumed = trainer(tmp_path / "resumed", limit_train_batches=4)
    resumed.fit(module(), datamodule=Digits(batch_size=8), ckpt_path=tmp_path / "stopped.ckpt")
    assert whole.global_step == resumed.global_step == 8
    assert whole.callback_metrics["train/penalty"] == resumed.callback_metrics["train/penalty"] > 0


def test_a_smaller_batch_weighs_less(tmp_path):
    x, y = torch.rand(5, 1, 28, 28), torch.arange(5)
    penalties, network = [], module()
    mean_penalty = network.mean_penalty
    network.mean_penalty = lambda images: penalties.append(penalty := mean_penalty(images)) or penalty
    run = trainer(tmp_path)
    run.fit_loop.max_epochs = 1
    run.fit(network, DataLoader(TensorDataset(x, y), 4))
    expected = (4 * penalties[0] + penalties[1]) / 5
    assert float(run.callback_metrics["train/penalty"]) == pytest.approx(expected.item(), rel=1e-6)
