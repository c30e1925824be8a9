"""The time that a test will take, known before it starts: a trial of its evaluations on a few images."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from callbacks.evaluation.base import Evaluation
from callbacks.evaluation.resumable import ResumableTest, paused
from lightning_modules.base import Batch, RobustClassifier

FEW, MORE = 2, 8  # images of the two trials
LONG = 120.0  # seconds; a test in which PASSES forward passes of all images take less gets no trial
PASSES = 3000  # about as many as attacks in three norms take


def trial_seconds(trainer: Trainer, module: LightningModule, batch: Any) -> float | None:
    """Seconds that the evaluations of a test will take; None if this is short, or nothing that can be tried.

    The evaluations run on the first two and the first eight images that are correct. The time of a batch is on the
    straight line through these two, and counts for each batch that is due. Nothing that they measure is kept, random
    draws are as without a trial. A trial that fails says so, and the test goes on, since an attack may refuse so few
    images. A test that continues (:class:`ResumableTest`) gets none.

    Args:
        trainer: of the test.
        module: what is evaluated.
        batch: the first one, on the device.

    Raises:
        SettingError: if the batch is wrong, as the test itself does.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    evaluations = [each for each in callbacks if isinstance(each, Evaluation)]
    resumable = [each for each in callbacks if isinstance(each, ResumableTest)]
    pair = isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(each, Tensor) for each in batch)
    limited = math.isfinite(trainer.num_test_batches[0]) and not any(each.continues for each in resumable)
    if not (evaluations and pair and limited and isinstance(module, RobustClassifier)):
        return None
    module.on_test_batch_start(batch, 0)
    (x, y), batches = batch, int(trainer.num_test_batches[0])
    with paused(resumable), torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        if not trainer.strategy.broadcast(_forward_seconds(module, x) * PASSES * batches >= LONG):
            return None
        try:
            chosen = (module(x).argmax(1) == y).nonzero().squeeze(1)[:MORE]  # attacks leave out the others
            if len(chosen) <= FEW:
                return None
            return sum((_tried(each, trainer, module, (x, y), chosen) for each in evaluations), 0.0)
        except Exception as error:
            rank_zero_info(f"Test: its time is not known, since a trial on {MORE} images failed: {error}")
            return None
        finally:
            for evaluation in evaluations:
                evaluation.on_start("test", trainer, module)


def _tried(evaluation: Evaluation, trainer: Trainer, module: RobustClassifier, batch: Batch, chosen: Tensor) -> float:
    """Seconds of an evaluation in the whole test."""
    (x, y), batches = batch, int(trainer.num_test_batches[0])
    evaluation.on_test_batch_start(trainer, module, batch, 0)  # it may leave itself out
    due = sum(evaluation.is_due("test", trainer, index) for index in range(batches))
    if due == 0:
        return 0.0
    few, more = (_seconds(evaluation, module, x[part], y[part]) for part in (chosen[:FEW], chosen))
    slope = max(more - few, 0.0) / (len(chosen) - FEW)
    return due * (more + slope * (len(x) - len(chosen)))


def _seconds(evaluation: Evaluation, module: RobustClassifier, x: Tensor, y: Tensor) -> float:
    start = time.perf_counter()
    evaluation.evaluate_batch(module, (x, y), range(len(x)), 0)
    return time.perf_counter() - start


def _forward_seconds(module: RobustClassifier, x: Tensor) -> float:
    """Seconds of the second of two forward passes."""
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        float(module(x).sum())  # waits for a GPU
        seconds = time.perf_counter() - start
    return seconds
