"""Certified accuracy in one map of budgets for all examples: what a generator adds to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Examples(NamedTuple):
    """A batch: images (B, C, H, W); labels, and whether they are correct without perturbation, (B,); their indices."""

    x: Tensor
    y: Tensor
    clean: Tensor
    rows: range


class SeenExamples:
    """The examples of a stage in main memory: the common map is known after the last of them."""

    def __init__(self) -> None:
        self._batches: list[Examples] = []

    def add(self, x: Tensor, y: Tensor, clean: Tensor, rows: range) -> None:
        """Add a batch; see :class:`Examples`."""
        self._batches.append(Examples(x.cpu(), y.cpu(), clean.cpu(), rows))

    def on(self, device: torch.device) -> Iterator[Examples]:
        """The batches, on a device."""
        for x, y, clean, rows in self._batches:
            yield Examples(x.to(device), y.to(device), clean.to(device), rows)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the images."""
        return self._batches[0].x.dtype
