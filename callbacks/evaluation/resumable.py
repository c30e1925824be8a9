"""Tests that continue after an interruption, from the evaluations' results of single images on disk."""

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
from robust.fingerprint import described, method_parts, own_code, structure, weights_of
from robust.folders import check_writable

VERSION = 5  # of the results; increase it whenever an attack or a verdict changes


class ResumableTest(Callback):
    """Saves the results of a test's evaluations in a folder, so that the same command continues a stopped test.

    After each attack on a batch, the verdicts on its images are saved. A later test of the same weights, on any number
    of processes, reads them and ends with the same metrics as an uninterrupted test. Results of another network, of
    other weights, settings, images or files of your own classes, or of a version with other attacks are refused: give
    each checkpoint its own folder.

    Args:
        folder: folder of the results, created if absent.

    Attributes:
        paused: whether a trial is running, which must not read or write results.

    Raises:
        SettingError: if the folder has results of other weights, settings or images, or cannot be written.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.paused = False
        self._tested: dict[str, Any] = {}
        self._saved: dict[str, tuple[SavedRows, Rows]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what all results depend on: the network, its weights, and the method's settings, such as epsilon."""
        self.check_test(trainer, pl_module, None)
        networks, settings = method_parts(pl_module)
        described_networks = {name: structure(each) for name, each in networks.items()}
        self._tested = {
            "version": VERSION,
            "network": described_networks.pop("classifier", None),
            "weights": weights_of(pl_module),
            "method": [described_networks, described(settings)],
            "own code": own_code(type(pl_module), settings, *networks.values()),
        }
        self._saved = {}

    def check_test(self, trainer: Trainer, module: Any, loader: Any) -> None:
        """Check a test before it starts, and before a training that a test follows.

        Raises:
            SettingError: if there are several of these callbacks, or the folder cannot be written.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        count = sum(isinstance(callback, ResumableTest) for callback in callbacks)
        require(count == 1, "trainer.callbacks", f"{count} x ResumableTest", "give one: it saves all evaluations")
        check_writable(self.folder, "ResumableTest.folder")

    @property
    def continues(self) -> bool:
        """Whether the folder already has results."""
        return self.folder.is_dir() and any(self.folder.iterdir())

    def rows(self, key: str, depends_on: object, images: Rows, process: int, compute: Callable[[], Rows]) -> Rows:
        """Return the rows of ``images`` from the folder, or compute and save them.

        Args:
            key: name of the result, which is also the name of its subfolder.
            depends_on: settings on which the result depends.
            images: columns ``index``, the indices in the data, and ``image``, checksums; both int64 (B,).
            process: number of this process.
            compute: function that gives the other columns (B, ...).
        """
        if key not in self._saved:
            saved = SavedRows("ResumableTest.folder", self.folder / key, self._settings(depends_on))
            self._saved[key] = saved, saved.read()
        saved, rows = self._saved[key]
        if rows and bool(torch.isin(images["index"], rows["index"]).all()):
            stored = {name: column[torch.searchsorted(rows["index"], images["index"])] for name, column in rows.items()}
            remedy = "it has results of other images; give another folder"
            require(torch.equal(stored["image"], images["image"]), "ResumableTest.folder", str(self.folder), remedy)
            return stored
        computed = {name: column.cpu() for name, column in compute().items()}
        rows = concatenate([rows, images | computed])
        self._saved[key] = saved, rows
        saved.write(rows, process)
        return images | computed

    def _settings(self, depends_on: object) -> dict[str, Any]:
        return {**self._tested, "settings": described(depends_on), "code of settings": own_code(depends_on)}


@contextmanager
def paused(callbacks: list[ResumableTest]) -> Iterator[None]:
    """Let these callbacks neither read nor write results."""
    for callback in callbacks:
        callback.paused = True
    try:
        yield
    finally:
        for callback in callbacks:
            callback.paused = False


def saved_or_computed(
    trainer: Trainer, key: str, depends_on: object, indices: Tensor, x: Tensor, y: Tensor, compute: Callable[[], Rows]
) -> Rows:
    """Return columns (B, ...) of the images from the test's :class:`ResumableTest`, or compute them.

    Args:
        trainer: trainer of the test.
        key: name of the result.
        depends_on: settings on which the result depends.
        indices: indices of the images in the data, (B,).
        x: images (B, C, H, W).
        y: labels (B,).
        compute: function that computes the columns.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    resumable = next((callback for callback in callbacks if isinstance(callback, ResumableTest)), None)
    if resumable is None or resumable.paused or not trainer.testing:
        return compute()
    bytes_ = (x.detach() * 255).round().long().flatten(1)
    weights = torch.arange(1, bytes_.shape[1] + 1, device=x.device)
    images = {"index": indices.cpu(), "image": ((bytes_ * weights).sum(1) * 1009 + y).cpu()}
    rows = resumable.rows(key, depends_on, images, trainer.global_rank, compute)
    return {name: column.to(x.device) for name, column in rows.items() if name not in images}
