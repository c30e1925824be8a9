"""Stores the examples of a stage, to certify them in a map of budgets that is common to all of them.

The difference from the certified accuracy in the examples' own budgets is what the generator adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Examples(NamedTuple):
    """A batch: images ``x`` (B, C, H, W), labels ``y`` (B,), whether they are correct without perturbation, indices."""

    x: Tensor
    y: Tensor
    clean: Tensor
    rows: range


class SeenExamples:
    """The examples of a stage in main memory, since the common map is known only after the last one."""

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
