"""What the processes of a step have in common: values, the places of their examples, a seed."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from lightning_modules.base.synchronised import SynchronisedStatistics, check_equal_passes
from robust.errors import require


class AcrossProcesses(pl.LightningModule):
    """A module whose processes share each step's batch: equal parts of it, one behind the other."""

    def gathered(self, value: Tensor) -> Tensor:
        """The parts (B, ...) of all processes in a row, in the order of the global batch; no gradient flows."""
        parts = self.all_gather(value)
        assert isinstance(parts, Tensor)
        return parts if parts.dim() == value.dim() else parts.flatten(0, 1)

    def places(self, count: int) -> range:
        """Places in the global batch of the ``count`` examples of this process."""
        rank = 0 if self._trainer is None else self.global_rank
        return range(rank * count, (rank + 1) * count)

    def averaged(self, value: Tensor) -> Tensor:
        """Mean over all processes, through which gradients flow to each process's part; ``value`` without several."""
        if self.trainer.world_size == 1:
            return value
        parts = self.all_gather(value, sync_grads=True)
        assert isinstance(parts, Tensor)
        return parts.mean(0)

    def common_seed(self) -> int:
        """The seed of torch's generator in the first process, for all of them."""
        return int(self.trainer.strategy.broadcast(torch.initial_seed() % 2**32))

    def check_strategy(self, parts_left_out: list[str]) -> None:
        """Check how the trainer divides the work, and have it synchronise batch normalisation, if asked, on CPUs too.

        Args:
            parts_left_out: networks that some steps of the training leave out.

        Raises:
            SettingError: if its strategy is not for them, or unknown.
        """
        strategy = self.trainer.strategy
        if parts_left_out and isinstance(strategy, DDPStrategy):
            require(
                bool(strategy._ddp_kwargs.get("find_unused_parameters")),
                "trainer.strategy",
                "ddp",
                f"{type(self).__name__} has steps that leave out {', '.join(parts_left_out)}; "
                "give ddp_find_unused_parameters_true",
            )
        require(
            isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)),
            "trainer.strategy",
            type(strategy).__name__,
            "give auto, ddp or ddp_find_unused_parameters_true; sharded strategies are not supported",
        )
        if isinstance(strategy, DDPStrategy) and strategy._layer_sync is not None:
            check_equal_passes(self)
            strategy._layer_sync = SynchronisedStatistics()
