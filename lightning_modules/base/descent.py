"""One step of descent: which optimizer moves which parameters, finite losses, clipping, stepping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD

from robust.errors import NonFiniteLossError, require


class Trained(NamedTuple):
    """Parameters, the optimizer that moves them, and its learning-rate schedule, if any."""

    parameters: Iterable[nn.Parameter]
    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None = None


class Descent(pl.LightningModule):
    """Steps its own optimizers, so that a method may alternate between several.

    Args:
        optimizer: of all parameters, unless :meth:`trained` says otherwise.
        lr_scheduler: its learning-rate schedule, by default stepped once an epoch.
        gradient_clip: largest norm of the gradient of all parameters that a step moves; none by default.

    Raises:
        SettingError: if ``gradient_clip`` is not positive.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = lambda params: SGD(params, lr=0.1, momentum=0.9, weight_decay=5e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        gradient_clip: float | None = None,
    ) -> None:
        super().__init__()
        positive = gradient_clip is None or gradient_clip > 0
        require(positive, "model.gradient_clip", gradient_clip, "give a positive norm")
        self.automatic_optimization = False
        self.optimizer, self.lr_scheduler, self.gradient_clip = optimizer, lr_scheduler, gradient_clip

    def trained(self) -> list[Trained]:
        """List what each optimizer moves; methods with several optimizers extend it."""
        return [Trained(self.parameters(), self.optimizer, self.lr_scheduler)]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizers and schedules of :meth:`trained`, in its order."""
        trained = self.trained()
        optimizers = [part.optimizer(part.parameters) for part in trained]
        pairs = zip(trained, optimizers, strict=True)
        return optimizers, [part.lr_scheduler(optimizer) for part, optimizer in pairs if part.lr_scheduler is not None]

    def all_optimizers(self) -> list[LightningOptimizer]:
        """The optimizers in the order of :meth:`trained`, always as a list."""
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]  # type: ignore[list-item]

    def descend(self, loss: Tensor, *optimizers: LightningOptimizer, counts: bool = True) -> None:
        """Zero gradients, backpropagate ``loss`` (a scalar), clip, and step every optimizer.

        Args:
            loss: scalar.
            optimizers: those to step. With ``counts`` the first one advances Lightning's ``global_step`` by one, so
                that however many optimizers there are, it counts batches; the others never do.
            counts: whether this is the batch's one counted step.

        Raises:
            NonFiniteLossError: if the loss is NaN or infinite; nothing is changed then.
        """
        self.check_finite(loss)
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        self.step(*optimizers, counts=counts)

    def check_finite(self, loss: Tensor) -> None:
        """Stop training if the loss, a scalar, is NaN or infinite.

        Raises:
            NonFiniteLossError: if it is.
        """
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"loss: got {loss.item()} in epoch {self.current_epoch}; training stopped before this step, "
                "resume from the last checkpoint with a smaller model.gradient_clip, or train anew with a lower rate"
            )

    def step(self, *optimizers: LightningOptimizer, counts: bool = True) -> None:
        """Clip the gradients and step every optimizer: the second half of :meth:`descend`, same arguments."""
        if self.gradient_clip is not None:
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            nn.utils.clip_grad_norm_([weight for group in groups for weight in group["params"]], self.gradient_clip)
        for index, optimizer in enumerate(optimizers):
            if counts and index == 0:
                optimizer.step()
            else:
                self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
