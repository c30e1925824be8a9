"""What the evaluations that attack share: seeds of their own, a check of every attack, exact figures, their hooks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchmetrics import Metric

from callbacks._order import Verdict, check_against_others
from callbacks._places import Places
from lightning_modules.base import Batch, RobustClassifier, check_precision
from robust.errors import require
from robust.modes import attack_mode
from robust.random import numbered
from robust.threat_models import ThreatModel

Stage = Literal["val", "test"]
# It returns images. With that type, jsonargparse would take a class_path for that of a subclass of Tensor.
Attack = Callable[[nn.Module, ThreatModel, Tensor, Tensor], Any]


class AttackingEvaluation(Callback, ABC):
    """An evaluation of test batches, whatever the Trainer's inference mode is.

    Args:
        seed: of the random draws, which depend on it, the example's index in the data and the attack; what an attack
            draws by torch itself, on the batch and the process too. Torch's generators are left as they are.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.metrics: dict[str, Metric] = {}
        self.certified: list[Verdict] = []  # of the last batch
        self.broken: list[Verdict] = []
        self._places = Places()
        self._tried = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See :func:`check_evaluation`, and refuse weights of half precision."""
        check_evaluation(self, trainer, pl_module)
        if stage != "predict":
            check_precision(pl_module, trainer, type(self).__name__)
        self._tried = False

    def try_out(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Run what may not fit the module on a blank image ``x`` (1, C, H, W) of label ``y`` (1,), first of all.

        Raises:
            SettingError: if it does not fit.
        """

    def subjects(self, module: LightningModule) -> set[str]:
        """What the names of the figures depend on, beside the class; one for each set of figures."""
        return {""}

    @abstractmethod
    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor, batch_idx: int) -> None:
        """Attack images (B, C, H, W) of labels (B,), batch ``batch_idx`` of this process, and count."""

    @abstractmethod
    def figures(self) -> dict[str, Tensor]:
        """What is logged of all that was counted, by name."""

    def report(self, stage: Stage, module: RobustClassifier) -> dict[str, Tensor]:
        """The figures; where an evaluation writes files beside them, it does so here, in all processes."""
        return self.figures()

    def count(self, name: str, metric: Callable[[], Metric], *values: Tensor) -> None:
        """Update the metric of that name, and make it first if there is none."""
        if name not in self.metrics:
            self.metrics[name] = metric().to(values[0].device)
        self.metrics[name].update(*values)

    def on_batch(self, module: RobustClassifier, batch: Batch, batch_idx: int) -> None:
        """Evaluate a batch where attacks can take gradients."""
        x, y = batch
        self.certified, self.broken = [], []
        self._places.advance(module.trainer, x)
        with torch.inference_mode(False), torch.no_grad():
            self.evaluate(module, x.clone(), y.clone(), batch_idx)  # those of inference mode cannot enter a graph
        self._compare(module.trainer)

    @contextmanager
    def drawing(self, x: Tensor, batch_idx: int, *key: int) -> Iterator[None]:
        """Random draws for the batch ``x`` (B, C, H, W) that depend on the seed, ``key`` and the examples' indices."""
        rows = self._places.rows
        with seeded(x.device, self.seed, rows.start, batch_idx, *key), numbered((self.seed, *key), rows):
            yield

    def note_broken(self, module: RobustClassifier, threat_model: ThreatModel, broken: Tensor, attack: str) -> None:
        """Keep a verdict, bool (B,), for the comparison with others; that on a network with noise is one of chance."""
        if not module.stochastic:
            self.broken.append(Verdict(threat_model, broken, f"as they are or under {attack}"))

    def _compare(self, trainer: Trainer) -> None:
        """Check this evaluation's verdicts on the batch against those of the others that have had it before."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        before = callbacks[: callbacks.index(self)]
        others = [other for other in before if isinstance(other, AttackingEvaluation) and self._same_batch(other)]
        for other in others:
            check_against_others(self.certified, other.broken, self._places.last)
            check_against_others(other.certified, self.broken, self._places.last)

    def _same_batch(self, other: AttackingEvaluation) -> bool:
        return torch.equal(self._places.last, other._places.last)

    def on_end(self, stage: Stage, module: RobustClassifier) -> None:
        """Log what was counted."""
        if self.metrics:
            for name, value in self.report(stage, module).items():
                # synchronised by the metrics themselves; sync_dist only averages values that are already equal
                module.log(f"{stage}/{name}", value, sync_dist=True)
        self.forget()

    def forget(self) -> None:
        """Reset metrics and verdicts; a stopped evaluation may have left some."""
        self.metrics, self.certified, self.broken, self._places = {}, [], [], Places()

    def on_fit_start(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Try out before training what does not depend on weights, if the data module says what the images are."""
        self._try(trainer, pl_module, None)

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, batch: Any, batch_idx: int
    ) -> None:
        """Try out before the first step, at the latest."""
        self._try(trainer, pl_module, batch)

    def on_validation_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Try out before the first batch."""
        self._try(trainer, pl_module, batch)

    def on_test_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Try out before the first batch."""
        self._try(trainer, pl_module, batch)

    def _try(self, trainer: Trainer, module: RobustClassifier, batch: Any) -> None:
        """Try out, once a run, on a blank image of the data's shape, as soon as that is known."""
        if self._tried:
            return
        shape = getattr(getattr(trainer, "datamodule", None), "image_shape", None) or _image_shape(batch)
        if shape is None:
            return
        self._tried = True
        dtype = next((weight.dtype for weight in module.parameters()), torch.float32)
        with attack_mode(module, "eval"), seeded(module.device, self.seed):
            blank = torch.zeros(1, *shape, dtype=dtype, device=module.device)
            self.try_out(module, blank, torch.zeros(1, dtype=torch.long, device=module.device))

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset."""
        self.forget()

    def on_test_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Evaluate a test batch."""
        self.on_batch(pl_module, batch, batch_idx)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Log the test figures."""
        self.on_end("test", pl_module)


class ValidatingEvaluation(AttackingEvaluation):
    """One that can also be made in validation: in ``train.py validate``, and after some epochs of training.

    Args:
        seed: see :class:`AttackingEvaluation`.
        every_n_epochs: evaluate in validation after every so many epochs of training, and after the last; by default
            only in tests and in ``train.py validate``.
        max_batches: evaluate at most so many batches of each process in validation.
        max_test_batches: and so many in a test; by default all of them.

    Raises:
        SettingError: if a setting is below 1.
    """

    def __init__(
        self, seed: int, every_n_epochs: int | None, max_batches: int | None, max_test_batches: int | None = None
    ) -> None:
        super().__init__(seed)
        name = type(self).__name__
        fits = max_test_batches is None or max_test_batches >= 1
        require(fits, f"{name}.max_test_batches", max_test_batches, "give at least 1")
        require(every_n_epochs is None or every_n_epochs >= 1, f"{name}.every_n_epochs", every_n_epochs, "at least 1")
        require(max_batches is None or max_batches >= 1, f"{name}.max_batches", max_batches, "give at least 1")
        self.every_n_epochs = every_n_epochs
        self.max_batches = max_batches
        self.max_test_batches = max_test_batches

    def on_test_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Evaluate a test batch."""
        if self.max_test_batches is None or batch_idx < self.max_test_batches:
            self.on_batch(pl_module, batch, batch_idx)

    def _due(self, trainer: Trainer, batch_idx: int) -> bool:
        """Whether this validation batch is evaluated; never in the sanity check."""
        if self.max_batches is not None and batch_idx >= self.max_batches:
            return False
        if trainer.state.fn == "validate":
            return True
        epoch = trainer.current_epoch + 1
        return (
            not trainer.sanity_checking
            and self.every_n_epochs is not None
            and (epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs)
        )

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset."""
        self.forget()

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Evaluate a validation batch."""
        if self._due(trainer, batch_idx):
            self.on_batch(pl_module, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Log the validation figures."""
        self.on_end("val", pl_module)


def check_evaluation(callback: Callback, trainer: Trainer, module: LightningModule) -> None:
    """Check that what is trained is a classifier, and that no other callback's figures have the same names.

    Lightning would log the mean of both.

    Args:
        callback: the evaluation.
        trainer: its callbacks are looked through.
        module: what is evaluated.

    Raises:
        SettingError: if one is not so.
    """
    name = type(callback).__name__
    require(isinstance(module, RobustClassifier), "model", type(module).__name__, f"it is no classifier; no {name}")
    alike = [each for each in trainer.callbacks if type(each) is type(callback)]  # type: ignore[attr-defined]
    twins = [each for each in alike if _subjects(each, module) & _subjects(callback, module)]
    remedy = "their figures have the same names; test with one at a time, --trainer.callbacks '[]' behind the method's "
    require(len(twins) == 1, "trainer.callbacks", f"{len(twins)} x {name}", f"{remedy}config leaves its own out")


def _subjects(callback: Callback, module: LightningModule) -> set[str]:
    subjects = getattr(callback, "subjects", None)
    return {""} if subjects is None else subjects(module)


@contextmanager
def seeded(device: torch.device, *key: int) -> Iterator[None]:
    """Torch's generators seeded by ``key``, and given back as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(hash(key) % 2**63)
        yield


def attacked(name: str, attack: Attack, network: nn.Module, threat_model: ThreatModel, x: Tensor, y: Tensor) -> Tensor:
    """What the attack makes of ``x`` (B, C, H, W), checked to be in the threat model and in [0, 1].

    Raises:
        RuntimeError: if it is not: the accuracy would be that in another threat model.
    """
    x_adv: Tensor = attack(network, threat_model, x, y)
    if x_adv.shape != x.shape or not bool((inside := threat_model.contains(x_adv, x)).all()):
        what = f"images of shape {tuple(x_adv.shape)}" if x_adv.shape != x.shape else f"{int((~inside).sum())} images"
        raise RuntimeError(
            f"invalid attack {name}: {_name(attack)} gave {what} out of {len(x)} outside "
            f"{type(threat_model).__name__} or [0, 1]; project what it returns by threat_model.project"
        )
    return x_adv


def _image_shape(batch: Any) -> tuple[int, ...] | None:
    """(C, H, W) of the images in a batch, or in the first of several; None if it holds no images."""
    while isinstance(batch, list | tuple) and len(batch) > 0:
        batch = batch[0]
    return tuple(batch.shape[1:]) if isinstance(batch, Tensor) and batch.dim() == 4 else None


def _name(attack: Attack) -> str:
    attack = getattr(attack, "func", attack)  # of a partial
    return getattr(attack, "__name__", type(attack).__name__)
