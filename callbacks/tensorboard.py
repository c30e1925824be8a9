"""Writes to TensorBoard, beside the metrics of every run: settings, command, rates, throughput, HPARAMS, a layout."""

from __future__ import annotations

import shlex
import sys
import time
from typing import Any

import yaml
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from callbacks.results import Results
from robust.metric_names.registry import find, markdown_table


def _titled(text: str, metric: str) -> str:
    """The title of a chart with the unit and the direction of one of its metrics."""
    info = find(metric)
    known = [] if info is None else [part for part in (info.unit, info.direction) if part != "none"]
    return f"{text} ({', '.join(known)})" if known else text


LAYOUT = {
    "Overview": {
        _titled("loss", "train/loss"): ["Multiline", ["^train/loss$"]],
        _titled("clean, attacked and certified accuracy", "val/accuracy/clean"): [
            "Multiline",
            ["^(val|test)/(certified_)?accuracy/"],
        ],
        _titled("epsilon", "train/epsilon"): ["Multiline", ["^train/epsilon$"]],
    },
    "Optimization": {
        _titled("learning rate", "train/learning_rate"): ["Multiline", ["^train/learning_rate"]],
        _titled("images", "train/images_per_second"): ["Multiline", ["^train/images_per_second$"]],
    },
}  # titles of sections and charts, and patterns of the metrics that a chart shows
_PARTS = ("model", "data", "epsilon_schedule")  # the parts of the settings that HPARAMS lists


class TensorBoard(Callback):
    """Adds settings, rates, throughput, HPARAMS and a layout to TensorBoard, under the same names for every method.

    - TEXT: ``run/command``, ``run/settings``, and ``run/metrics``, the units and meanings of all metrics.
    - SCALARS: ``train/learning_rate``, with ``_2`` for a second optimizer, in the method's order; and
      ``train/images_per_second``, over all processes and without the time of validation. Other loggers get these, too.
    - HPARAMS: the settings of model, data and schedule, with the metrics of the last validation after a training, and
      those of the test after a test.
    - CUSTOM SCALARS: a section with loss, accuracies and epsilon, and one with rates and throughput.

    Without loggers it does nothing. Only the first process writes.
    """

    def __init__(self) -> None:
        self._images = 0
        self._start = 0.0
        self._folders: set[str] = set()  # that have the settings; a test after a training has the same folder

    # -- settings ------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the settings, the command and the layout."""
        for logger in _tensorboards(trainer):
            if logger.log_dir in self._folders:
                continue
            self._folders.add(logger.log_dir)
            writer = logger.experiment
            writer.add_text("run/command", f"    {shlex.join(['python', *sys.argv])}")
            text = yaml.dump(_settings(trainer), Dumper=yaml.CSafeDumper, sort_keys=False)
            writer.add_text("run/metrics", markdown_table())
            writer.add_text("run/settings", "".join(f"    {line}\n" for line in text.splitlines()))
            if stage == "fit":
                writer.add_custom_scalars(LAYOUT)

    # -- rates and throughput ------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restart the clock, so that the time of validation does not count."""
        self._restart()

    def on_train_batch_end(
        self, trainer: Any, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images, and log at the steps at which Lightning logs."""
        self._images += _count(batch) * trainer.world_size
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        if not trainer.loggers or not trainer.log_every_n_steps or (step + 1) % trainer.log_every_n_steps:
            return
        values = _learning_rates(trainer)
        values["train/images_per_second"] = self._images / max(time.perf_counter() - self._start, 1e-9)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)
        self._restart()

    def _restart(self) -> None:
        self._images, self._start = 0, time.perf_counter()

    # -- HPARAMS -------------------------------------------------------------------------------------------------------

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the settings with the last validation's metrics."""
        self._write_hparams(trainer, pl_module, "val/")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the settings with the test's metrics."""
        self._write_hparams(trainer, pl_module, "test/")

    def _write_hparams(self, trainer: Trainer, module: LightningModule, prefix: str) -> None:
        """Write a session of HPARAMS into a folder of its own, so that it has only these metrics."""
        results = _results(trainer)
        old = results.outdated(trainer) if results is not None and prefix == "val/" else set()
        logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}
        metrics = {name: float(value) for name, value in logged.items() if name not in old}
        settings = _settings(trainer)
        seed = getattr(module, "training_seed", None)
        flat = {"seed": settings.get("seed_everything") if seed is None else seed} | {
            name: value for part in _PARTS for name, value in _flat(part, settings.get(part))
        }
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in _tensorboards(trainer):
            # the experiment's summary is left out: it would fix one run's metrics as the columns of all runs
            given = {name: value for name, value in flat.items() if value is not None}
            _, start, end = hparams(given, {})  # type: ignore[no-untyped-call]
            with SummaryWriter(f"{logger.log_dir}/hparams") as writer:
                file = writer._get_file_writer()
                file.add_summary(start)
                file.add_summary(end)
                for name, value in metrics.items():
                    writer.add_scalar(name, value, step)


def _tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    """The TensorBoard loggers of the first process; none in other processes."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero]


def _settings(trainer: Trainer) -> dict[str, Any]:
    results = _results(trainer)
    return {} if results is None else results.config


def _results(trainer: Trainer) -> Results | None:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, Results)), None)


def _learning_rates(trainer: Trainer) -> dict[str, float]:
    """The rate of the first parameter group of each optimizer."""
    rates = [float(optimizer.param_groups[0]["lr"]) for optimizer in trainer.optimizers]
    return {f"train/learning_rate{'' if index == 0 else f'_{index + 1}'}": rate for index, rate in enumerate(rates)}


def _count(batch: Any) -> int:
    """Number of images in a batch, or in a list of batches."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() == 4 else 0
    return sum(_count(part) for part in batch) if isinstance(batch, list | tuple) else 0


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    """Names and plain values of nested settings, without the levels ``init_args``; a class has its last name."""
    if isinstance(value, dict) and "class_path" in value:
        return [(name, value["class_path"].rpartition(".")[2]), *_flat(name, value.get("init_args", {}))]
    if isinstance(value, dict):
        return [pair for key, part in value.items() for pair in _flat(f"{name}.{key}", part)]
    return [(name, str(value) if isinstance(value, list | tuple) else value)]
