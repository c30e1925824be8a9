"""Verdicts and margins of single images in a test's record; by these a report compares networks on the same images."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robust.metrics import Gathered

QUANTILES = 51


class Outcomes:
    """Verdicts and certified margins of the images of a test, on any number of processes.

    In a record, ``outcomes`` maps a metric to ``images`` (a hash of their indices in the data), ``count`` (their
    number) and ``correct`` (one bit for each image in the order of the indices, packed, in base64). ``margins`` maps a
    metric to 51 evenly spaced, ascending quantiles of the lowest certified margins, in logits, of the images that have
    one.
    """

    def __init__(self) -> None:
        self._columns: dict[tuple[str, str], Gathered] = {}
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.margins: dict[str, list[float]] = {}

    def update(self, kind: str, name: str, indices: Tensor, values: Tensor) -> None:
        """Add values (B,) of ``kind`` ``outcomes`` or ``margins`` to a metric, by the images' indices (B,)."""
        column = self._columns.setdefault((kind, name), Gathered(["value"]).to(values.device))
        column.update(indices, values)

    def finish(self, stage: str) -> None:
        """Gather the values of all processes; all of them call this, with the same order of names."""
        for (kind, name), column in self._columns.items():
            rows = column.rows()
            if kind == "margins":
                if len(rows["value"]) == 0:  # a test that is limited to its first batches may have no margins
                    continue
                fractions = torch.linspace(0, 1, QUANTILES, dtype=torch.float64, device=rows["value"].device)
                self.margins[f"{stage}/{name}"] = rows["value"].double().quantile(fractions).tolist()
                continue
            packed = np.packbits(rows["value"].bool().cpu().numpy())
            images = hashlib.sha256(rows["index"].cpu().numpy().tobytes()).hexdigest()[:16]
            correct = base64.b64encode(packed.tobytes()).decode()
            self.outcomes[f"{stage}/{name}"] = {"images": images, "count": len(rows["index"]), "correct": correct}
        self._columns = {}
