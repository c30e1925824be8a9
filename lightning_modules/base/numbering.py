"""Numbers of the examples in a step: their indices in the global batch when training, in the data when evaluating."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal

from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from pytorch_lightning import LightningDataModule
from pytorch_lightning.overrides.distributed import (
    UnrepeatedDistributedSampler,
    UnrepeatedDistributedSamplerWrapper,
    _IndexBatchSamplerWrapper,
)
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, IterableDataset, RandomSampler, SequentialSampler

from robust.errors import require
from robust.random import is_numbered, numbered

if TYPE_CHECKING:
    from lightning_modules.base.training_module import TrainingModule

# without subclasses, which may have another order; a sampler can also say that it is ``in_order``
_IN_ORDER = (
    SequentialSampler,
    DistributedSampler,
    DistributedSamplerWrapper,
    UnrepeatedDistributedSampler,
    UnrepeatedDistributedSamplerWrapper,
)
_KEYS = {"validation_step": 1, "test_step": 2, "predict_step": 3}
_SPLITS: dict[str, Literal["val", "test"]] = {"validation_step": "val", "test_step": "test", "predict_step": "test"}


def number_steps(kind: type[TrainingModule]) -> None:
    """Wrap the steps that a class defines, so that draws of :mod:`robust.random` depend on the examples' numbers.

    Evaluation steps also set the module's ``data_indices``.
    """
    for name in ("training_step", *_KEYS):
        if name in vars(kind):
            setattr(kind, name, _numbered(name, vars(kind)[name]))


def _numbered(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
    """The step of that name inside :func:`robust.random.numbered`."""

    @wraps(step)
    def numbered_step(self: TrainingModule, batch: Any, *arguments: Any, **named: Any) -> Any:
        batch_idx = arguments[0] if arguments else named["batch_idx"]
        first = name == "training_step" and _is_first(self)
        versions = [weight._version for weight in self.parameters()] if first else []
        with _numbering(self, name, batch, batch_idx):
            result = step(self, batch, *arguments, **named)
        if name == "training_step" and not self.automatic_optimization:
            remedy = "nothing steps what it returns; call self.descend(loss, *self.all_optimizers()) instead"
            require(result is None, f"{type(self).__name__}.training_step", type(result).__name__, remedy)
        if first:
            _warn_if_nothing_trains(self, versions)
        return result

    return numbered_step


def _is_first(module: TrainingModule) -> bool:
    """Whether this is the run's first training step, not inside another one, of a module that steps its optimizers."""
    begins = module._trainer is not None and module.batches_started == 1 and not is_numbered()
    return begins and not module.automatic_optimization


def _warn_if_nothing_trains(module: TrainingModule, versions: list[int]) -> None:
    """Warn if a step has changed no weight, and left no gradient for a later one; ``versions`` are from before it."""
    changed = versions != [weight._version for weight in module.parameters()]
    if not changed and all(weight.grad is None for weight in module.parameters()):
        name, remedy = f"{type(module).__name__}.training_step", "call self.descend(loss, *self.all_optimizers())"
        rank_zero_warn(f"{name}: the first step steps no optimizer and gives no weight a gradient; {remedy}")


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
    spacing = index_spacing(module.data_indices, module.trainer.world_size)
    return numbered((module.run_seed(), _KEYS[name]), module.data_indices, spacing=spacing)


def index_spacing(indices: range, processes: int) -> int:
    """Distance of the indices of neighbouring examples over all processes, from one process's ``indices``.

    >>> index_spacing(range(7, 1000, 40), processes=2)
    20
    """
    return indices.step // processes if indices.step % processes == 0 else 1


def _evaluated(module: TrainingModule, split: Literal["val", "test"], batch_idx: int, count: int) -> range:
    """Indices in the data of the ``count`` examples of a batch.

    The data module gives them. For other loaders, Lightning's own sampler gives process r of n the examples r, r + n,
    r + 2n, ...
    """
    trainer = module.trainer
    loop: Any = trainer._active_loop
    data: Any = loop._data_source.instance  # trainer.datamodule may be the data module of an earlier run
    indices = getattr(data, "indices", None)
    if isinstance(data, LightningDataModule) and callable(indices):
        part = getattr(data, "predict_part", split) if trainer.predicting else split
        spacing: Any = getattr(data, "spacing", None) if batch_idx == 0 else None
        step = module.data_indices.step if batch_idx > 0 else trainer.world_size
        step *= spacing(part) if callable(spacing) else 1
        return _as_range(indices(part, batch_idx).tolist(), count, step)
    _require_order(loop._combined_loader.flattened[0], trainer.world_size)
    first = module.global_rank if batch_idx == 0 else module.data_indices[-1] + trainer.world_size
    return range(first, first + trainer.world_size * count, trainer.world_size)


def _require_order(loader: Any, processes: int) -> None:
    """Refuse all samplers but those that are known to give each example once and in order.

    Repeated examples would count twice, and shuffled or chosen ones have other indices than their numbers.
    """
    samplers = list(_samplers(loader))
    remedy = "it leaves out the last images, which no metric then counts; give drop_last=False"
    require(not _drops_images(loader), "data", "a loader with drop_last=True", remedy)
    for sampler in samplers:
        shuffles = isinstance(sampler, RandomSampler) or bool(getattr(sampler, "shuffle", False))
        ordered = getattr(sampler, "in_order", type(sampler) in _IN_ORDER and not shuffles)
        remedy = (
            "give shuffle=False" if shuffles else "give no sampler, and torch.utils.data.Subset for some of the images"
        )
        remedy = f"an evaluation records the images by their order; {remedy}"
        require(ordered, "data", f"a loader with {type(sampler).__name__}", remedy)
        if type(sampler) in _IN_ORDER[1:]:
            size = len(sampler.dataset)  # Lightning's wrapper of another sampler has that sampler's length
            given = f"{size} images in {sampler.num_replicas} processes"
            remedy = f"the loader's sampler repeats images up to {sampler.total_size}, which would count twice; give "
            remedy += "one of our data modules, a multiple of the number of processes, or one process"
            require(sampler.total_size <= size, "data", given, remedy)
    divided = any(isinstance(sampler, DistributedSampler) or hasattr(sampler, "in_order") for sampler in samplers)
    remedy = f"each of the {processes} processes would evaluate all images; give trainer.use_distributed_sampler: true"
    if samplers:
        require(divided or processes == 1, "data", f"a loader with {type(samplers[0]).__name__}", remedy)


def _drops_images(loader: Any) -> bool:
    """Whether the loader leaves out a smaller last batch."""
    batches = getattr(loader, "batch_sampler", None)
    batches = getattr(loader, "sampler", None) if batches is None else batches
    batches = batches._batch_sampler if isinstance(batches, _IndexBatchSamplerWrapper) else batches
    if not getattr(batches, "drop_last", False) or isinstance(batches, DistributedSampler):
        return False  # a distributed sampler's repetitions are looked at below
    inner: Any = getattr(batches, "sampler", None)
    size = getattr(batches, "batch_size", None)
    return size is None or not hasattr(inner, "__len__") or len(inner) % size != 0


def _samplers(loader: Any) -> Iterator[Any]:
    """The samplers of a loader, inside those of batches, and those behind Lightning's distributed ones."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        return
    sampler = getattr(loader, "batch_sampler", None)
    sampler = getattr(loader, "sampler", None) if sampler is None else sampler
    while sampler is not None:
        if isinstance(sampler, _IndexBatchSamplerWrapper):
            sampler = sampler._batch_sampler
        elif type(sampler) is BatchSampler:
            sampler = sampler.sampler
        else:
            yield sampler
            sampler = getattr(getattr(sampler, "dataset", None), "_sampler", None)


def _as_range(indices: list[int], count: int, step: int) -> range:
    """The indices of the ``count`` images of a batch as a range; a single one has that ``step``.

    Raises:
        SettingError: if there are more or fewer indices, or they do not rise in equal steps.
    """
    remedy = "its method indices must return one index for each image of the batch"
    require(len(indices) == count, "data", f"{len(indices)} indices of {count} images", remedy)
    rows = range(indices[0], indices[-1] + 1, max(indices[1] - indices[0], 1) if count > 1 else step)
    remedy = "its method indices must return indices that rise in equal steps in evaluation"
    require(list(rows) == indices, "data", f"indices {indices[:3]}...", remedy)
    return rows
