"""Numbers of the examples in a step: their indices in the global batch, or in the data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import Tensor

from robust.random import is_numbered, numbered

if TYPE_CHECKING:
    from lightning_modules.base.training_module import TrainingModule

_EVALUATIONS = {"validation_step": 1, "test_step": 2, "predict_step": 3}


def number_steps(kind: type[TrainingModule]) -> None:
    """Wrap the steps that a class defines, so that :mod:`robust.random` draws by the numbers of the examples.

    In training, process r of n has the r-th of n equal parts of the batch. In evaluation it has the examples r, r + n,
    r + 2n, ... of the data.
    """
    for name in ("training_step", *_EVALUATIONS):
        if name in vars(kind):
            setattr(kind, name, _numbered(name, vars(kind)[name]))


def _numbered(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(step)
    def numbered_step(self: TrainingModule, batch: Any, *arguments: Any, **named: Any) -> Any:
        batch_idx = arguments[0] if arguments else named["batch_idx"]
        with _numbering(self, name, batch, batch_idx):
            return step(self, batch, *arguments, **named)

    return numbered_step


def _numbering(module: TrainingModule, name: str, batch: Any, batch_idx: int) -> AbstractContextManager[None]:
    images = batch
    while isinstance(images, list | tuple) and len(images) > 0:
        images = images[0]
    if module._trainer is None or is_numbered() or not isinstance(images, Tensor):
        return nullcontext()
    count, world = len(images), module.trainer.world_size
    if name == "training_step":
        return numbered(
            (module.run_seed(), module.current_epoch, batch_idx), module.batch_indices(count), world * count
        )
    module.evaluated = 0 if batch_idx == 0 else module.evaluated
    first = module.global_rank + world * module.evaluated
    module.evaluated += count
    return numbered((module.run_seed(), _EVALUATIONS[name]), range(first, first + world * count, world))
