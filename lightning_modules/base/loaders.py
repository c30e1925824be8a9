"""The number of images of a loader."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DistributedSampler, IterableDataset


def num_images(loader: Any) -> int | None:
    """Number of images that a loader gives in an epoch, over all processes; None if it is not known."""
    dataset, sampler = getattr(loader, "dataset", None), getattr(loader, "batch_sampler", None)
    sampler = getattr(loader, "sampler", None) if sampler is None else sampler
    if sampler is None or isinstance(dataset, IterableDataset) or _length(dataset) is None:
        return _length(dataset)
    if isinstance(sampler, list | tuple):
        return sum(len(batch) for batch in sampler)
    sampler = getattr(sampler, "sampler", sampler)  # behind a sampler of batches
    # our sampler has a size; another distributed one has the length of a process's part
    distributed = isinstance(sampler, DistributedSampler)
    return getattr(sampler, "size", None) or _length(sampler.dataset if distributed else sampler)


def _length(value: Any) -> int | None:
    return len(value) if hasattr(value, "__len__") else None
