"""What everything that is trained shares: steps of its own, exact resumption, checks before anything runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning.callbacks import StochasticWeightAveraging
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from lightning_modules.base.across_processes import AcrossProcesses
from lightning_modules.base.checks import check_images, check_precision, images_of, labelled, run_blank
from lightning_modules.base.numbering import number_steps
from lightning_modules.base.progress import correct_progress
from lightning_modules.base.rates import check_schedules, monitored_names, step_schedules
from lightning_modules.base.resumption import Resumption
from lightning_modules.base.settings import (
    Described,
    ResumeSettings,
    describe_data,
    describe_optimizers,
    require_same,
)
from robust.errors import NonFiniteLossError, require

Batch = tuple[Tensor, Tensor]


class TrainingModule(AcrossProcesses, ABC):
    """Networks with optimizers that the method steps itself, in runs that resume bit for bit.

    Subclasses write ``training_step`` and ``configure_optimizers``, and end each step in :meth:`descend`. Images are
    float tensors (B, C, H, W) in [0, 1].

    Args:
        gradient_clip: largest norm of the gradient of all parameters that a step moves; none by default.

    Raises:
        SettingError: if ``gradient_clip`` is not positive.

    Attributes:
        training_batches: how many independently shuffled batches a step takes; with more than one, ``training_step``
            gets a list of them.
        resume_settings: what holds where a checkpoint was written with other optimizers, schedules or data: those of
            the ``"checkpoint"`` or the ``"config"``; without it such a resumption is refused.
        used_optimizers: classes and settings of optimizers and schedules as they are used in this training.
        evaluated: number of examples that this process has had in the current evaluation.
        half_precision: whether it also trains weights of half precision, in ``bf16-true`` and ``16-true``.
    """

    training_batches: int = 1
    half_precision: bool = False

    def __init__(self, gradient_clip: float | None = None) -> None:
        super().__init__()
        require(
            gradient_clip is None or gradient_clip > 0, "model.gradient_clip", gradient_clip, "give a positive norm"
        )
        self.automatic_optimization = False
        self.gradient_clip = gradient_clip
        self.resume_settings: ResumeSettings | None = None
        self.used_optimizers: Described = []
        self._resumption = Resumption(None)
        self._monitored: dict[str, float] = {}
        self._seed: int | None = None
        self._evaluation_seed = 0
        self.evaluated = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Number the examples of its steps: what is drawn for them is the same on any number of processes."""
        super().__init_subclass__(**kwargs)
        number_steps(cls)

    @abstractmethod
    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One batch of the method's algorithm."""

    @property
    def learned_parts(self) -> dict[str, nn.Module]:
        """Networks that some steps leave out; under DDP these need a search for unused ones."""
        return {}

    # -- one step of descent -------------------------------------------------------------------------------------

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
        """Clip the gradients and step every optimizer; see :meth:`descend`, of which it is the second half."""
        if self.gradient_clip is not None:
            groups = [group for optimizer in optimizers for group in optimizer.param_groups]
            nn.utils.clip_grad_norm_([weight for group in groups for weight in group["params"]], self.gradient_clip)
        for index, optimizer in enumerate(optimizers):
            if counts and index == 0:
                optimizer.step()
            else:
                self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)

    def all_optimizers(self) -> list[LightningOptimizer]:
        """The optimizers in the order of ``configure_optimizers``, always as a list."""
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]  # type: ignore[list-item]

    def run_seed(self) -> int:
        """The seed of the training, which checkpoints keep, or else of the evaluation; equal in all processes."""
        return self._evaluation_seed if self._seed is None else self._seed

    # -- at the door ---------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that networks, data and trainer fit together before anything runs.

        Raises:
            SettingError: naming the setting that does not fit.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is not None and hasattr(data, "image_shape"):
            self.check_shapes(data.image_shape, data.num_classes)
        self._resumption = Resumption(None)  # until a checkpoint is read
        callbacks = getattr(self.trainer, "callbacks", [])
        averaging = [each for each in callbacks if isinstance(each, StochasticWeightAveraging)]
        remedy = "it trains on for an epoch; give pytorch_lightning.callbacks.EMAWeightAveraging"
        require(not averaging, "trainer.callbacks", "StochasticWeightAveraging", remedy)
        if stage == "fit" and not self.half_precision:
            check_precision(self, self.trainer, type(self).__name__)
        require(
            self.gradient_clip is None or self.trainer.precision != "16-mixed",
            "trainer.precision",
            "16-mixed",
            "its scaled gradients cannot be clipped in manual optimization; give bf16-mixed or 32-true",
        )
        self.check_strategy(list(self.learned_parts) if stage == "fit" else [])
        if self.trainer.precision == "64-true":
            self.double()  # Lightning converts it only after it has loaded a checkpoint, whose weights would be rounded
        self._evaluation_seed = self.common_seed()

    def check_shapes(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Run the networks once on a blank image of the data's shape; subclasses say what is checked.

        Raises:
            SettingError: if one does not take it or gives another shape than it should.
        """

    def check_batch(self, x: Tensor, y: Tensor | None, name: str) -> None:
        """Check a batch of any loader; subclasses say what they need of labels.

        Args:
            x: images.
            y: labels; none where nothing depends on them.
            name: what errors call the batch.

        Raises:
            SettingError: naming what was found, what is expected and the remedy.
        """
        check_images(x, f"images of {name}")

    def _check_labelled(self, batch: Any, name: str) -> None:
        for x, y in labelled(batch, name):
            self.check_batch(x, y, name)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Check the batch."""
        self._check_labelled(batch, f"validation batch {batch_idx}")

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Check the batch."""
        self._check_labelled(batch, f"test batch {batch_idx}")

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Check the images; they need no labels."""
        name = f"predict batch {batch_idx}"
        self.check_batch(images_of(batch, name), None, name)

    def check_generator(self, name: str, generator: nn.Module, image_shape: tuple[int, int, int]) -> None:
        """Check that a generator gives images of the data's shape.

        Raises:
            SettingError: if it does not.
        """
        output = run_blank(f"model.{name}", generator, image_shape, self.device)
        require(
            tuple(output.shape[1:]) == tuple(image_shape),
            f"model.{name}",
            f"{type(generator).__name__} with output {tuple(output.shape[1:])}",
            f"give one with output {image_shape}, the shape of the data's images",
        )

    # -- what a checkpoint holds beside weights ------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Take the run's seed, unless a checkpoint brought its own; compare the configured optimizers with its.

        Raises:
            SettingError: if they differ, and ``resume_settings`` does not say which are to be used.
        """
        if self._seed is None:
            self._seed = self.common_seed()
        self.used_optimizers = describe_optimizers(self.trainer)
        self._resumption.compare(self.trainer, self.used_optimizers, self.resume_settings)

    def on_train_start(self) -> None:
        """Give the optimizers the settings that were decided on; check the schedules."""
        self.used_optimizers = self._resumption.settle(self.trainer, self.used_optimizers, self.resume_settings)
        check_schedules(self.trainer)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Check the batch, and make its step depend on (seed, epoch, batch) alone: resumed runs repeat it.

        What torch draws itself, as in dropout, depends on the process too.

        Lightning's hooks at the ends of an epoch are not called on resuming from a checkpoint of its last batch.
        """
        name = f"train batch {batch_idx}"
        for x, y in labelled(batch, name, self.training_batches):
            self.check_batch(x, y, name)
        step_schedules(self.trainer, batch_idx, self._monitored_now())
        key = (self._seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(hash(key) % 2**63)

    def _monitored_now(self) -> dict[str, float]:
        """The metrics that schedules depend on; a resumed run has them from its checkpoint at first."""
        logged = self.trainer.callback_metrics
        names = [name for name in monitored_names(self.trainer) if name in logged]
        if names:  # what is logged of a training step is of this process's part of the batch
            values = torch.stack([logged[name].detach().double().to(self.device) for name in names])
            self._monitored |= dict(zip(names, self.averaged(values).tolist(), strict=True))
        return self._monitored

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the method, the seed, and what a resumed run is compared with."""
        checkpoint["method"] = type(self).__name__
        checkpoint["seed"] = self._seed
        if self._trainer is None:  # without one there is nothing to go on with
            return
        checkpoint["optimizers"] = self.used_optimizers
        checkpoint["data"] = describe_data(self.trainer)
        checkpoint["monitored"] = self._monitored_now()
        correct_progress(checkpoint, self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the seed back, and refuse what another method or another network saved.

        Raises:
            SettingError: if the checkpoint does not fit this module.
        """
        method = checkpoint.get("method")
        require(
            method == type(self).__name__,
            "ckpt_path",
            f"a checkpoint of {method}",
            f"this is {type(self).__name__}; give one of its checkpoints, or set model.class_path to that method",
        )
        self._check_state(checkpoint["state_dict"])
        self._seed = checkpoint["seed"]
        self._monitored = checkpoint.get("monitored", {})
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self._resumption = Resumption(checkpoint)
            require_same("data", describe_data(self.trainer), checkpoint.get("data", {}), self.resume_settings)

    def _check_state(self, state: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        wrong = sorted(own.keys() ^ state.keys()) or [k for k in own if own[k].shape != state[k].shape]
        require(
            not wrong,
            "ckpt_path",
            f"a checkpoint that differs in {len(wrong)} tensors, the first is {wrong[0] if wrong else None}",
            "configure the same networks as at training (the config.yaml beside the checkpoints has them)",
        )
