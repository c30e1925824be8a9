"""Optimizers and their steps: the parameters of each optimizer, checks of the loss, clipping, stepping."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD

from lightning_modules.base.checks import check_scales
from lightning_modules.base.rebuilding import Rebuilding
from robust.errors import NonFiniteLossError, require


class OptimizerSpec(NamedTuple):
    """Parameters, the optimizer that updates them, and its learning-rate schedule, if any."""

    parameters: Iterable[nn.Parameter]
    optimizer: OptimizerCallable
    lr_scheduler: LRSchedulerCallable | None = None


class Descent(Rebuilding):
    """A module that steps its optimizers itself, so that a method may alternate between several.

    Args:
        optimizer: optimizer of all parameters, unless a subclass overrides :meth:`optimizer_specs`.
        lr_scheduler: learning-rate schedule, by default stepped once an epoch.
        gradient_clip: largest gradient norm over all parameters that a step updates; None for no clipping.

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
        self._without_gradient: set[int] = set()  # optimizers of which a warning has said so
        self._step_of_batch, self._counted = 0, False

    def optimizer_specs(self) -> list[OptimizerSpec]:
        """One entry for each optimizer; methods with several optimizers extend the list."""
        return [OptimizerSpec(self.parameters(), self.optimizer, self.lr_scheduler)]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizers and schedules in the order of :meth:`optimizer_specs`.

        Raises:
            SettingError: for ``LBFGS``, if an entry has no weights, or if a weight that requires a gradient is in none.
        """
        specs = [spec._replace(parameters=list(spec.parameters)) for spec in self.optimizer_specs()]
        remedy = (
            "an optimizer would have no weights; give a network with layers that are attributes, or in nn.ModuleList"
        )
        require(all(bool(spec.parameters) for spec in specs), "model", type(self).__name__, remedy)
        self._check_all_listed(specs)
        optimizers = [spec.optimizer(spec.parameters) for spec in specs]
        closure = next((type(each).__name__ for each in optimizers if isinstance(each, torch.optim.LBFGS)), None)
        require(closure is None, "optimizer", closure, "it needs closures; give one such as torch.optim.SGD or Adam")
        pairs = zip(specs, optimizers, strict=True)
        return optimizers, [spec.lr_scheduler(optimizer) for spec, optimizer in pairs if spec.lr_scheduler is not None]

    def _check_all_listed(self, specs: list[OptimizerSpec]) -> None:
        groups: list[Any] = [group for spec in specs for group in spec.parameters]
        weights = (group["params"] if isinstance(group, dict) else [group] for group in groups)  # as optimizers take
        listed = {id(weight) for weight in chain.from_iterable(weights)}
        left_out = [
            name for name, weight in self.named_parameters() if weight.requires_grad and id(weight) not in listed
        ]
        remedy = "no optimizer would train them; add them in optimizer_specs, or freeze them by requires_grad_(False)"
        require(not left_out, type(self).__name__, ", ".join(left_out), remedy)

    def all_optimizers(self) -> list[LightningOptimizer]:
        """The optimizers in the order of :meth:`optimizer_specs`, always as a list."""
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]  # type: ignore[list-item]

    def begin_batch(self) -> None:
        """Let the next step of an optimizer count, however many follow it in the batch."""
        self._step_of_batch, self._counted = self.trainer.global_step, False

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check that the batch counts once.

        Raises:
            SettingError: if ``training_step`` stepped optimizers otherwise than by :meth:`descend` and :meth:`step`.
        """
        super().on_train_batch_end(outputs, batch, batch_idx)
        count = self.trainer.global_step - self._step_of_batch
        remedy = "max_steps and checkpoints count batches; step by self.descend or self.step, which count a batch once"
        require(count <= 1, f"{type(self).__name__}.training_step", f"{count} counted steps in a batch", remedy)

    def descend(self, loss: Tensor, *optimizers: LightningOptimizer) -> None:
        """Zero gradients, backpropagate ``loss``, clip gradients, and step every optimizer.

        The first step in a batch advances Lightning's ``global_step``, which thus counts batches, however many
        optimizers there are and however often they step.

        Args:
            loss: loss, a scalar.
            optimizers: optimizers to step.

        Raises:
            SettingError: if the loss cannot be descended, or the optimizers are given as a list.
            NonFiniteLossError: if the loss is NaN or infinite; no parameter has changed then.
        """
        self.check_loss(loss)
        kind = next((type(each).__name__ for each in optimizers if isinstance(each, list | tuple)), None)
        remedy = "give the optimizers one by one: self.descend(loss, *self.all_optimizers())"
        require(kind is None, f"{type(self).__name__}.training_step", kind, remedy)
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        self.step(*optimizers)

    def check_loss(self, loss: Tensor) -> None:
        """Stop training at a loss that cannot be descended.

        Raises:
            SettingError: if the loss is not a scalar, or no gradient leads from it to a weight.
            NonFiniteLossError: if it is NaN or infinite.
        """
        name = f"{type(self).__name__}.training_step"
        require(loss.dim() == 0, name, f"a loss of shape {tuple(loss.shape)}", "give a scalar, such as its mean")
        remedy = "no gradient leads from it to a weight; do not detach it, and leave some weights to train"
        require(loss.requires_grad, name, "a loss without a gradient", remedy)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"loss: got {loss.item()} in epoch {self.current_epoch}; training stopped before this step, "
                "resume from the last checkpoint with a smaller model.gradient_clip, or train again with a lower rate"
            )

    def step(self, *optimizers: LightningOptimizer) -> None:
        """Clip the gradients and step every optimizer, as :meth:`descend` does.

        Raises:
            SettingError: if several optimizers step in ``16-mixed``: the first step may change the scale of the others'
                gradients.
        """
        check_scales(self, together=len(optimizers) > 1)
        if self.gradient_clip is not None:
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            nn.utils.clip_grad_norm_([weight for group in groups for weight in group["params"]], self.gradient_clip)
        for optimizer in optimizers:
            self._warn_of_missing_gradient(optimizer)
            if not self._counted:
                optimizer.step()
                self._counted = True
            else:
                inner: Any = getattr(optimizer, "optimizer", optimizer)
                self.trainer.strategy.optimizer_step(inner, lambda: None)

    def _warn_of_missing_gradient(self, optimizer: LightningOptimizer) -> None:
        """Warn once of an optimizer whose step changes nothing, since no gradient has reached its weights."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        key = id(getattr(optimizer, "optimizer", optimizer))
        trained = any(weight.grad is not None for weight in weights)
        if key in self._without_gradient or trained or not any(weight.requires_grad for weight in weights):
            return
        self._without_gradient.add(key)
        first = next((name for name, weight in self.named_parameters() if weight is weights[0]), "its first weight")
        rank_zero_warn(
            f"{type(self).__name__}.training_step: no gradient reaches {first} and {len(weights) - 1} other weights "
            "of its optimizer, whose step changes none; do not detach their outputs, or do not step it there"
        )
