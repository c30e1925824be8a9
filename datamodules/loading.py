"""Images in memory, the order of the batches, and loaders that resume exactly.

``batch_size`` everywhere means the global batch: the images of one step over all processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from robust.errors import require


def seeded(*key: int) -> torch.Generator:
    """A generator on the CPU whose stream depends on the whole key of non-negative integers."""
    # torch's looks at 32 bits only, and a sum of the key would give different keys the same stream
    mixed = np.random.SeedSequence(key).generate_state(1)
    return torch.Generator().manual_seed(int(mixed[0]))


class Batch(NamedTuple):
    """Float32 images in [0, 1] of shape (B, C, H, W), int64 labels of shape (B,)."""

    images: Tensor
    labels: Tensor


def scaled(images: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1]; floats as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


class TensorImages(Dataset[Batch]):
    """Labelled images held in memory as bytes, read a whole batch at a time.

    Args:
        images: uint8, shape (N, C, H, W).
        labels: int64 in [0, num_classes), shape (N,).
        num_classes: number of classes.

    Raises:
        SettingError: if a shape, a type or a label is not as above, or there are no images.
    """

    def __init__(self, images: Tensor, labels: Tensor, num_classes: int) -> None:
        form = (images.dtype, tuple(images.shape))
        require(images.dtype == torch.uint8 and images.ndim == 4, "images", form, "give uint8 of shape (N, C, H, W)")
        require(len(images) > 0, "images", form, "give at least one image")
        form = (labels.dtype, tuple(labels.shape))
        fits = labels.dtype == torch.int64 and labels.shape == images.shape[:1]
        require(fits, "labels", form, f"give int64 of shape ({len(images)},), one for each image")
        span = (int(labels.min()), int(labels.max()))
        require(span[0] >= 0 and span[1] < num_classes, "labels", span, f"give classes from 0 to {num_classes - 1}")
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def __getitem__(self, indices: Tensor | list[int]) -> Batch:
        """The images of ``indices``, shape (B,), as a batch."""
        images, labels = self.raw(torch.as_tensor(indices))
        return Batch(scaled(images), labels)

    def raw(self, indices: Tensor) -> Batch:
        """The same with the images as bytes."""
        # index_select copies image by image, an order of magnitude faster than indexing
        return Batch(self.images.index_select(0, indices), self.labels.index_select(0, indices))


class RawImages(Dataset[Batch]):
    """Images that are read as bytes, to be scaled where they arrive: a quarter to copy between processes and devices.

    Args:
        images: what is read.
    """

    def __init__(self, images: TensorImages) -> None:
        self.images = images

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> Batch:
        """The images of ``indices``, shape (B,), as bytes."""
        return self.images.raw(indices)


def part_of_batch(batch_size: int, processes: int, rank: int) -> slice:
    """Positions in the global training batch of the images of one process."""
    size = batch_size // processes
    return slice(rank * size, (rank + 1) * size)


class ShardedBatches(DistributedSampler[Tensor]):
    """The index tensors of this process's part of each batch.

    Training: batch k of an epoch is the k-th slice of a permutation that depends on seed and epoch alone, and each
    process takes its equal part of it. Any number of processes thus sees the same batches in the same order. The
    incomplete last batch is dropped.

    Evaluation: the process of rank r takes the images r, r + processes, r + 2 * processes, ...: each image is seen
    exactly once. All processes have the same number of batches, lest a collective in a step hang; for that the last
    batch of some may hold one image more.

    It is a :class:`DistributedSampler` so that Lightning leaves it in place.

    Args:
        dataset: the images that are indexed.
        batch_size: images in a batch, over all processes.
        shuffle: True for training, False for evaluation.
        seed: of the permutation, in [0, 2**32).
        num_replicas: number of processes; the default asks torch.distributed.
        rank: of this process; the default asks torch.distributed.

    Raises:
        SettingError: if a batch cannot be split evenly, exceeds the training images, or a process would evaluate none.
    """

    def __init__(
        self,
        dataset: TensorImages,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        processes = num_replicas or (dist.get_world_size() if distributed else 1)
        rank = rank if rank is not None else (dist.get_rank() if distributed else 0)
        super().__init__(dataset, num_replicas=processes, rank=rank, shuffle=shuffle, seed=seed)
        self.size = len(dataset)
        self.batch_size = batch_size
        self.first_batch = 0

        name = "data.batch_size" if shuffle else "data.eval_batch_size"
        remedy = f"it counts the images of all {processes} processes: give a multiple of {processes}"
        require(batch_size % processes == 0, name, batch_size, remedy)
        if shuffle:
            require(batch_size <= self.size, name, batch_size, f"give at most {self.size}, all the training images")
        else:
            remedy = f"use at most {self.size}, as many as there are images to evaluate"
            require(self.size >= processes, "number of processes", processes, remedy)

    def __len__(self) -> int:
        """Number of batches in an epoch, equal in all processes."""
        full, rest = divmod(self.size, self.batch_size)
        return full + (not self.shuffle and rest >= self.num_replicas)

    def __iter__(self) -> Iterator[Tensor]:
        """Index tensors of shape (about batch_size / processes,), from batch ``first_batch`` on."""
        yield from self.of_epoch()[self.first_batch :]

    def of_epoch(self) -> list[Tensor]:
        """The index tensors of all batches of the epoch, each of shape (about batch_size / processes,)."""
        if self.shuffle:
            whole = self._order()[: len(self) * self.batch_size].view(len(self), self.batch_size)
            return list(whole[:, part_of_batch(self.batch_size, self.num_replicas, self.rank)])
        own = torch.arange(self.rank, self.size, self.num_replicas)
        size = self.batch_size // self.num_replicas
        return list(own.tensor_split(tuple(range(size, size * len(self), size))))

    def _order(self) -> Tensor:
        """This epoch's permutation of the images, shape (N,)."""
        return torch.randperm(self.size, generator=seeded(self.seed, self.epoch))


class ResumableLoader(DataLoader[Batch]):
    """A loader of :class:`ShardedBatches` that goes on where a checkpoint was taken, without loading what came before.

    Set ``trainer`` on a loader for training: epoch and position are then those of Lightning's own loop, which
    checkpoints hold, so that the batch a training step gets depends on seed, current epoch and batch index alone.
    Arguments are those of :class:`DataLoader`, by keyword.
    """

    trainer: Trainer | None = None
    _saved: dict[str, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """What must be the same on resuming for the batches to be the same."""
        assert isinstance(self.sampler, ShardedBatches)
        return {"images": self.sampler.size, "batch_size": self.sampler.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration start where training stands; Lightning calls this on resuming inside an epoch."""
        self._saved = state

    # A generator, for DataLoader's own iterator may fix its batches at once, which is too early: on resuming,
    # Lightning asks for the iterator before epoch and position are restored.
    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the batches that are left of the epoch.

        Raises:
            SettingError: on resuming inside an epoch with another batch size or number of images.
        """
        assert isinstance(self.sampler, ShardedBatches)
        saved, self._saved = self._saved, None
        self.sampler.first_batch = 0
        if self.trainer is not None:
            self.sampler.set_epoch(self.trainer.current_epoch)
            if saved is not None:
                self.sampler.first_batch = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if self.sampler.first_batch > 0:
            remedy = f"the checkpoint was taken inside an epoch with {saved}: resume with the same"
            require(saved == self.state_dict(), "data.batch_size", self.state_dict(), remedy)
        yield from super().__iter__()
