"""Tests that continue after an interruption: what the evaluations have computed of single images, on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.evaluation.saved_rows import Rows, SavedRows, concatenate
from robust.errors import require
from robust.fingerprint import described, digest, structure

PLAIN = (bool, int, float, str, type(None))
VERSION = 3  # of what is computed; a change of an attack or a verdict raises it


class ResumableTest(Callback):
    """Keeps what the evaluations of a test compute in a folder; the same command continues a test that was stopped.

    After each attack on each batch, the folder has the verdicts on its images. A later test of the same weights, on any
    number of processes, takes them from there, and ends with the same metrics as an uninterrupted one. Another network,
    other weights, settings or images, and results of a version whose attacks differ, are refused: give each checkpoint
    a folder.

    Args:
        folder: made if absent.

    Attributes:
        paused: whether a trial runs, which takes and leaves nothing there.

    Raises:
        SettingError: if the folder has results of other weights, settings or images, or cannot be written.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.paused = False
        self._tested: dict[str, Any] = {}
        self._kept: dict[str, tuple[SavedRows, Rows]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the network, its weights and the method's settings, such as epsilon, which all results depend on."""
        method = {name: value for name, value in vars(pl_module).items() if isinstance(value, PLAIN) and name[0] != "_"}
        weights = digest(pl_module.state_dict().values())
        network = structure(getattr(pl_module, "classifier", pl_module))
        self._tested = {"version": VERSION, "network": network, "weights": weights, "method": method}
        self._kept = {}

    @property
    def continues(self) -> bool:
        """Whether the folder has results already."""
        return self.folder.is_dir() and any(self.folder.iterdir())

    def rows(self, key: str, depends_on: object, images: Rows, process: int, compute: Callable[[], Rows]) -> Rows:
        """The rows of ``images`` (columns ``index``, ``image``) from the folder, else what ``compute`` gives of them.

        Args:
            key: what is computed; a folder below the folder.
            depends_on: settings that it depends on.
            images: their indices in the data and their checksums, both int64 (B,).
            process: number of this process.
            compute: gives the other columns (B, ...).
        """
        if key not in self._kept:
            saved = SavedRows("ResumableTest.folder", self.folder / key, self._settings(depends_on))
            self._kept[key] = saved, saved.read()
        saved, rows = self._kept[key]
        if rows and bool(torch.isin(images["index"], rows["index"]).all()):
            stored = {name: column[torch.searchsorted(rows["index"], images["index"])] for name, column in rows.items()}
            remedy = "it has results of other images; give another folder"
            require(torch.equal(stored["image"], images["image"]), "ResumableTest.folder", str(self.folder), remedy)
            return stored
        computed = {name: column.cpu() for name, column in compute().items()}
        rows = concatenate([rows, images | computed])
        self._kept[key] = saved, rows
        saved.write(rows, process)
        return images | computed

    def _settings(self, depends_on: object) -> dict[str, Any]:
        return {**self._tested, "settings": described(depends_on)}


@contextmanager
def paused(callbacks: list[ResumableTest]) -> Iterator[None]:
    """Take nothing from the folders of these callbacks, and leave nothing there."""
    for callback in callbacks:
        callback.paused = True
    try:
        yield
    finally:
        for callback in callbacks:
            callback.paused = False


def kept(
    trainer: Trainer, key: str, depends_on: object, indices: Tensor, x: Tensor, y: Tensor, compute: Callable[[], Rows]
) -> Rows:
    """What ``compute`` gives of the images, from the folder of :class:`ResumableTest` if the test has one.

    Args:
        trainer: of the test.
        key: what is computed.
        depends_on: settings that it depends on.
        indices: of the images in the data, (B,).
        x: images (B, C, H, W).
        y: labels (B,).
        compute: gives columns (B, ...).
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    resumable = next((each for each in callbacks if isinstance(each, ResumableTest)), None)
    if resumable is None or resumable.paused or not trainer.testing:
        return compute()
    bytes_ = (x.detach() * 255).round().long().flatten(1)
    places = torch.arange(1, bytes_.shape[1] + 1, device=x.device)
    images = {"index": indices.cpu(), "image": ((bytes_ * places).sum(1) * 1009 + y).cpu()}
    rows = resumable.rows(key, depends_on, images, trainer.global_rank, compute)
    return {name: column.to(x.device) for name, column in rows.items() if name not in images}
