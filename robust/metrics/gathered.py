"""Values of single examples, gathered over processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Gathered(Metric):
    """Columns of a table with one row for each example, in the order of the data, whatever process evaluated it.

    Args:
        columns: names of the values.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    index: list[Tensor]

    def __init__(self, columns: list[str]) -> None:
        super().__init__()
        self.columns = columns
        self._shapes: dict[str, torch.Size] = {}  # of a row's values
        for name in ("index", *columns):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, index: Tensor, *values: Tensor) -> None:
        """Add rows: the examples' indices in the data (B,), and the values (B, ...) of each column."""
        for name, value in zip(("index", *self.columns), (index, *values), strict=True):
            getattr(self, name).append(value)
            self._shapes[name] = value.shape[1:]

    def rows(self) -> dict[str, Tensor]:
        """The result of :meth:`compute` as rows, also for a single row, which torchmetrics turns into scalars."""
        return {name: values.reshape(-1, *self._shapes[name]) for name, values in self.compute().items()}

    def compute(self) -> dict[str, Tensor]:
        """All rows by column, (N, ...), and their ``index`` (N,), in ascending order.

        Raises:
            RuntimeError: if an example was evaluated twice.
        """
        table = {name: _joined(getattr(self, name)) for name in ("index", *self.columns)}
        order = table["index"].argsort()
        index = table["index"][order]
        if bool((index[1:] == index[:-1]).any()):
            raise RuntimeError("an example was evaluated twice; evaluate with the data modules' own sampler")
        return {name: values[order] for name, values in table.items()}


def _joined(parts: list[Tensor] | Tensor) -> Tensor:
    return parts if isinstance(parts, Tensor) else torch.cat(parts)  # torchmetrics joins those of several processes
