"""Numbers of the examples in a step: their indices in the global batch, or in the data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DistributedSampler

from robust.errors import require
from robust.random import is_numbered, numbered

if TYPE_CHECKING:
    from lightning_modules.base.training_module import TrainingModule

_KEYS = {"validation_step": 1, "test_step": 2, "predict_step": 3}
_SPLITS: dict[str, Literal["val", "test"]] = {"validation_step": "val", "test_step": "test", "predict_step": "test"}


def number_steps(kind: type[TrainingModule]) -> None:
    """Wrap the steps that a class defines, so that :mod:`robust.random` draws by the numbers of the examples.

    Steps of evaluation note their examples as ``data_indices`` of the module.
    """
    for name in ("training_step", *_KEYS):
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
    count = len(images)
    if name == "training_step":
        key = (module.run_seed(), module.current_epoch, batch_idx)
        return numbered(key, module.batch_indices(count), module.trainer.world_size * count)
    module.data_indices = _evaluated(module, _SPLITS[name], batch_idx, count)
    return numbered((module.run_seed(), _KEYS[name]), module.data_indices)


def _evaluated(module: TrainingModule, split: Literal["val", "test"], batch_idx: int, count: int) -> range:
    """Indices in the data of the ``count`` examples of a batch.

    The data module says which. Of other loaders Lightning's own sampler gives process r of n the examples r, r + n,
    r + 2n, ...
    """
    trainer = module.trainer
    loop: Any = trainer._active_loop
    data: Any = loop._data_source.instance  # trainer.datamodule may be that of an earlier run
    indices = getattr(data, "indices", None)
    if isinstance(data, LightningDataModule) and callable(indices):
        part = getattr(data, "predict_part", split) if trainer.predicting else split
        return _as_range(indices(part, batch_idx).tolist(), count)
    _require_unrepeated(loop._combined_loader.flattened[0])
    first = module.global_rank if batch_idx == 0 else module.data_indices[-1] + trainer.world_size
    return range(first, first + trainer.world_size * count, trainer.world_size)


def _require_unrepeated(loader: Any) -> None:
    """Raise if a sampler repeats examples, so that all processes have equally many: they would count twice."""
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        size = len(loader.dataset)
        given = f"{size} images in {sampler.num_replicas} processes"
        remedy = f"the loader's sampler makes them {sampler.total_size}, and some would count twice; give "
        remedy += "one of our data modules, a number of images that the processes divide, or one process"
        require(sampler.total_size <= size, "data", given, remedy)


def _as_range(indices: list[int], count: int) -> range:
    remedy = "its method indices must name the images of the batch"
    require(len(indices) == count, "data", f"{len(indices)} indices of {count} images", remedy)
    found = range(indices[0], indices[-1] + 1, max(indices[1] - indices[0], 1) if count > 1 else 1)
    require(list(found) == indices, "data", f"indices {indices[:3]}...", "in evaluation they must rise in equal steps")
    return found
