"""The batches of each process: a sampler of equal parts, and a loader that resumes inside an epoch.

``batch_size`` is always the size of the global batch: the number of images in one step over all processes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from datamodules.loading import Batch, Indices, LabelledImages, seeded
from robust.errors import require


def part_of_batch(batch_size: int, processes: int, rank: int) -> slice:
    """Positions in the global training batch of the images of one process."""
    size = batch_size // processes
    return slice(rank * size, (rank + 1) * size)


def spread(count: int, total: int) -> range:
    """Indices of ``count`` of ``total`` images in equal steps, from a start that depends only on these two numbers.

    >>> list(spread(3, 3)), len(spread(100, 10_000)), spread(100, 10_000).step
    ([0, 1, 2], 100, 100)
    """
    step = total // count
    start = int(torch.randint(total - step * (count - 1), (), generator=seeded(count, total)))
    return range(start, start + step * count, step)


def class_p_value(labels: Tensor, chosen: range, num_classes: int) -> float:
    """p-value of equal classes of the ``chosen`` images and of all, with ``labels`` (N,), by Pearson's chi-square test.

    >>> class_p_value(torch.arange(100) % 10, range(0, 100, 10), 10) < 1e-9
    True
    """
    from scipy.stats import chisquare  # slow to import

    every = torch.bincount(labels, minlength=num_classes).double()
    own = torch.bincount(labels[list(chosen)], minlength=num_classes).double()
    present = every > 0
    return float(chisquare(own[present], every[present] * (len(chosen) / len(labels))).pvalue)


class ShardedBatches(DistributedSampler[Indices]):
    """Sampler of index arrays: this process's part of each batch.

    Training: batch k of an epoch is the k-th slice of a permutation that depends only on seed and epoch, and each
    process has an equal part of it. So any number of processes trains on the same batches in the same order. The
    incomplete last batch is dropped.

    Evaluation: the process of rank r has the images r, r + processes, r + 2 * processes, ..., so that each image is
    evaluated exactly once. All processes have the same number of batches, since otherwise a collective in a step would
    hang; the last batch of some processes may therefore have one more image.

    It is a :class:`DistributedSampler` so that Lightning does not replace it.

    Args:
        dataset: images whose indices are sampled.
        batch_size: number of images in a batch, over all processes.
        shuffle: True for training, False for evaluation.
        seed: seed of the permutation, in [0, 2**32).
        num_replicas: number of processes; by default that of torch.distributed.
        rank: rank of this process; by default that of torch.distributed.
        chosen: indices of the images of an evaluation; by default all.

    Raises:
        SettingError: if the batch size is not a multiple of the number of processes or exceeds the number of training
            images, or a process would have no image to evaluate.
    """

    def __init__(
        self,
        dataset: LabelledImages,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        chosen: range | None = None,
    ) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        processes = num_replicas or (dist.get_world_size() if distributed else 1)
        rank = rank if rank is not None else (dist.get_rank() if distributed else 0)
        super().__init__(dataset, num_replicas=processes, rank=rank, shuffle=shuffle, seed=seed)
        self.chosen = range(len(dataset)) if chosen is None else chosen
        self.size = len(self.chosen)
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

    @property
    def in_order(self) -> bool:
        """Whether it gives all images, and example i of process r of n is image r + i n."""
        return not self.shuffle and self.size == len(self.dataset)  # type: ignore[arg-type]

    def __len__(self) -> int:
        """Number of batches in an epoch, equal in all processes."""
        full, rest = divmod(self.size, self.batch_size)
        return full + (not self.shuffle and rest >= self.num_replicas)

    # NumPy arrays instead of tensors: sending a tensor to a worker takes a lock of PyTorch, and workers of another
    # loader that are forked at that moment would wait for it forever.
    def __iter__(self) -> Iterator[Indices]:
        """Index arrays of shape (about batch_size / processes,), from batch ``first_batch`` on."""
        for indices in self.of_epoch()[self.first_batch :]:
            yield indices.numpy()

    def of_epoch(self) -> list[Tensor]:
        """The index tensors of all batches of the epoch, each of shape (about batch_size / processes,)."""
        if self.shuffle:
            whole = self._order()[: len(self) * self.batch_size].view(len(self), self.batch_size)
            return list(whole[:, part_of_batch(self.batch_size, self.num_replicas, self.rank)])
        own = torch.tensor(self.chosen[self.rank :: self.num_replicas])
        size = self.batch_size // self.num_replicas
        return list(own.tensor_split(tuple(range(size, size * len(self), size))))

    def _order(self) -> Tensor:
        """This epoch's permutation of the images, shape (N,)."""
        return torch.randperm(self.size, generator=seeded(self.seed, self.epoch))


class ResumableLoader(DataLoader[Batch]):
    """A loader of :class:`ShardedBatches` that resumes at the checkpoint's batch without loading earlier batches.

    On a loader for training, set ``trainer``: epoch and batch index are then those of Lightning's loop, which
    checkpoints contain, so that the batch of a training step depends only on seed, epoch and batch index. Arguments are
    those of :class:`DataLoader`, by keyword.
    """

    trainer: Trainer | None = None
    _saved: dict[str, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """Number of images and batch size, which must be the same in a resumed run."""
        assert isinstance(self.sampler, ShardedBatches)
        return {"images": self.sampler.size, "batch_size": self.sampler.batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration at the checkpoint's batch; Lightning calls this when it resumes inside an epoch."""
        self._saved = state

    # This is a generator function, since DataLoader's iterator may fix its batches at once, and Lightning creates the
    # iterator of a resumed run before it restores the epoch and the batch index.
    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the remaining batches of the epoch.

        Raises:
            SettingError: if a run resumes inside an epoch with another batch size or number of images.
        """
        assert isinstance(self.sampler, ShardedBatches)
        saved, self._saved = self._saved, None
        self.sampler.first_batch = 0
        if self.trainer is not None:
            self.sampler.set_epoch(self.trainer.current_epoch)
            if saved is not None:
                self.sampler.first_batch = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if self.sampler.first_batch > 0:
            remedy = f"the checkpoint was written inside an epoch with {saved}; resume with the same numbers"
            require(saved == self.state_dict(), "data.batch_size", self.state_dict(), remedy)
        yield from super().__iter__()
