"""Estimate of the time of a test before it starts, from a trial of its evaluations on a few images."""

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

FEW, MORE = 2, 8  # numbers of images in the two trials
LONG = 120.0  # seconds; a test gets no trial if PASSES forward passes of all its images take less
PASSES = 3000  # about the number of passes of attacks in three norms


def trial_seconds(trainer: Trainer, module: LightningModule, batch: Any) -> float | None:
    """Estimate the seconds that the evaluations of a test will take; None if the test is short or cannot be tried.

    The evaluations run on the first two and on the first eight images that are correct. A straight line through these
    two times gives the time of a whole batch, which counts for each batch that is due. The trial stores no metrics and
    does not change later random draws. If it fails, a message says so and the test continues, since an attack may
    refuse so few images. A test that continues (:class:`ResumableTest`) gets no trial.

    Args:
        trainer: trainer of the test.
        module: module that is tested.
        batch: the first batch, on the device.

    Raises:
        SettingError: if the batch is wrong, or an evaluation does not fit the module, as in the test itself.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    evaluations = [callback for callback in callbacks if isinstance(callback, Evaluation)]
    resumable = [callback for callback in callbacks if isinstance(callback, ResumableTest)]
    pair = isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)
    limited = math.isfinite(trainer.num_test_batches[0]) and not any(test.continues for test in resumable)
    if not (evaluations and pair and limited and isinstance(module, RobustClassifier)):
        return None
    module.on_test_batch_start(batch, 0)
    (x, y), batches = batch, int(trainer.num_test_batches[0])
    with paused(resumable), torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        if not trainer.strategy.broadcast(_forward_seconds(module, x) * PASSES * batches >= LONG):
            return None
        for evaluation in evaluations:  # outside the try block: an evaluation that does not fit must end the test
            evaluation.on_test_batch_start(trainer, module, batch, 0)
        try:
            chosen = (module(x).argmax(1) == y).nonzero().squeeze(1)[:MORE]  # attacks skip the other images
            if len(chosen) <= FEW:
                return None
            return sum((_tried(evaluation, trainer, module, (x, y), chosen) for evaluation in evaluations), 0.0)
        except Exception as error:
            rank_zero_info(f"Test: no estimate of its time, because a trial on {MORE} images failed: {error}")
            return None
        finally:
            for evaluation in evaluations:
                evaluation.on_start("test", trainer, module)


def _tried(evaluation: Evaluation, trainer: Trainer, module: RobustClassifier, batch: Batch, chosen: Tensor) -> float:
    """Estimated seconds of an evaluation in the whole test."""
    (x, y), batches = batch, int(trainer.num_test_batches[0])
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
