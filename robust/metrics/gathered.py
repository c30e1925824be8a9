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
    place: list[Tensor]

    def __init__(self, columns: list[str]) -> None:
        super().__init__()
        self.columns = columns
        self._shapes: dict[str, torch.Size] = {}  # of a row's values
        for name in ("place", *columns):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, place: Tensor, *values: Tensor) -> None:
        """Add rows: the examples' places in the data (B,), and for each column its values (B, ...)."""
        for name, value in zip(("place", *self.columns), (place, *values), strict=True):
            getattr(self, name).append(value)
            self._shapes[name] = value.shape[1:]

    def rows(self) -> dict[str, Tensor]:
        """What :meth:`compute` gives, also where it is one row, of which torchmetrics makes scalars."""
        return {name: values.reshape(-1, *self._shapes[name]) for name, values in self.compute().items()}

    def compute(self) -> dict[str, Tensor]:
        """All rows by column, (N, ...), with ``place`` (N,), rising.

        Raises:
            RuntimeError: if an example was evaluated twice.
        """
        table = {name: _joined(getattr(self, name)) for name in ("place", *self.columns)}
        order = table["place"].argsort()
        place = table["place"][order]
        if bool((place[1:] == place[:-1]).any()):
            raise RuntimeError("an example was evaluated twice; evaluate with the data modules' own sampler")
        return {name: values[order] for name, values in table.items()}


def _joined(parts: list[Tensor] | Tensor) -> Tensor:
    return parts if isinstance(parts, Tensor) else torch.cat(parts)  # over processes they are joined already
