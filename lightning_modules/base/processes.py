"""Communication between the processes of a run: gathered values, a common seed, common batch statistics."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from lightning_modules.base.synchronised import SynchronisedStatistics, check_equal_passes
from robust.errors import require


class AcrossProcesses(pl.LightningModule):
    """A module of which each process has an equal, consecutive part of each training batch."""

    def gather(self, value: Tensor) -> Tensor:
        """Concatenate the parts (B, ...) of all processes, in the order of the global batch; no gradient flows."""
        parts = self.all_gather(value)
        assert isinstance(parts, Tensor)
        return parts if parts.dim() == value.dim() else parts.flatten(0, 1)

    def batch_indices(self, count: int) -> range:
        """Indices in the global batch of the ``count`` examples of this process."""
        rank = 0 if self._trainer is None else self.global_rank
        return range(rank * count, (rank + 1) * count)

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        """Mean over all processes, with gradients to the value of each; a single process returns ``value`` itself."""
        if self._trainer is None or self.trainer.world_size == 1:
            return value
        parts = self.all_gather(value, sync_grads=True)
        assert isinstance(parts, Tensor)
        return parts.mean(0)

    def common_seed(self) -> int:
        """The first process's seed of torch's generator, broadcast to all processes."""
        return int(self.trainer.strategy.broadcast(torch.initial_seed() % 2**32))

    def check_strategy(self, partially_used: list[str]) -> None:
        """Check the trainer's strategy, and let ``trainer.sync_batchnorm`` work on CPUs too.

        Args:
            partially_used: names of the parameters that some training steps do not use.

        Raises:
            SettingError: if the strategy is not supported, or does not support such parameters.
        """
        strategy = self.trainer.strategy
        if partially_used and isinstance(strategy, DDPStrategy):
            require(
                bool(strategy._ddp_kwargs.get("find_unused_parameters")),
                "trainer.strategy",
                "ddp",
                f"{type(self).__name__} has steps that do not use {', '.join(partially_used)}; "
                "give ddp_find_unused_parameters_true",
            )
        require(
            isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)),
            "trainer.strategy",
            type(strategy).__name__,
            "give auto, ddp or ddp_find_unused_parameters_true; sharded strategies are not supported",
        )
        method = strategy._start_method if isinstance(strategy, DDPStrategy) else "popen"
        if self.trainer.state.fn == "fit" and method != "popen":
            rank_zero_warn(
                f"trainer.strategy: its processes are started by {method}; after the training, this module has their "
                "weights, but not the rest, such as seed and noise switch; load the last checkpoint, or give ddp"
            )
        if isinstance(strategy, DDPStrategy) and strategy._layer_sync is not None:
            check_equal_passes(self)
            strategy._layer_sync = SynchronisedStatistics()
