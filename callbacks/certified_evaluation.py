"""Certifies the classifier on validation and test data, on any number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import MaxMetric, Metric, MinMetric

from callbacks._attacking import check_place
from lightning_modules.base import RobustClassifier
from robust.attacks import PGD
from robust.bounds import FeedForwardVerifier, Verifier
from robust.budgets import LearnedBudgets
from robust.errors import require
from robust.metrics import ErrorRate
from robust.threat_models import PixelBox, ThreatModel

Stage = Literal["val", "test"]


class CertifiedEvaluation(Callback):
    """Verified error under each of the module's threat models, each example counted once.

    An example is verified where the verifier's margin bound is above 0 for every other class. Logged as
    ``<stage>/verified_error/<threat model>``, for sizes other than the module's with ``/epsilon_<size>`` behind; and
    for learned budgets ``<stage>/budget/min``, ``max`` and ``log_volume_error``, the largest distance of an
    example's mean log budget from log epsilon. Source: contextual budgets, Sec. 4.1.

    With ``budgets`` it evaluates in those in place of the module's threat models, such as a uniform model in the
    budgets that another model has learned: ``<stage>/verified_error/<name>``, ``<stage>/budget/<name>/min``, and so on.

    Args:
        verifier: gives the margins; by default IBP of feed-forward networks.
        epsilons: sizes of the threat models in (0, 1]; by default the module's epsilon.
        every_n_epochs: certify in validation after every so many epochs.
        max_batches: certify at most so many batches of each process in validation; the test is always whole.
        pgd_steps: if above 0, also attack the same boxes with so many steps of PGD and log
            ``<stage>/pgd_error/<threat model>``; an example that is both certified and broken stops the evaluation.
        budgets: other budgets by name.

    Raises:
        SettingError: if a setting is out of its range.
        RuntimeError: if PGD breaks a certified example, i.e. a bound is wrong.
    """

    def __init__(
        self,
        verifier: Verifier | None = None,
        epsilons: list[float] | None = None,
        every_n_epochs: int = 1,
        max_batches: int | None = None,
        pgd_steps: int = 0,
        budgets: dict[str, LearnedBudgets] | None = None,
    ) -> None:
        name = "CertifiedEvaluation"
        for epsilon in epsilons or []:
            require(0 < epsilon <= 1, f"{name}.epsilons", epsilon, "give sizes in (0, 1], in pixel units")
        require(every_n_epochs >= 1, f"{name}.every_n_epochs", every_n_epochs, "give at least 1")
        require(max_batches is None or max_batches >= 1, f"{name}.max_batches", max_batches, "give at least 1")
        require(pgd_steps >= 0, f"{name}.pgd_steps", pgd_steps, "give 0 for no attack, or a number of steps")
        require(budgets != {}, f"{name}.budgets", budgets, "give at least one, or leave it out")
        self.budgets = budgets
        self.verifier = FeedForwardVerifier() if verifier is None else verifier
        self.epsilons = epsilons
        self.every_n_epochs = every_n_epochs
        self.max_batches = max_batches
        self.attack = PGD(steps=pgd_steps, early_stop=True) if pgd_steps else None
        self.metrics: dict[str, Metric] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See :func:`check_place`."""
        check_place(self, trainer, pl_module)

    def subjects(self, module: LightningModule) -> set[str]:
        """What the names of the figures depend on: budgets and sizes."""
        sizes: list[Any] = self.epsilons or [module.epsilon]
        return {f"{budgets} of {size}" for budgets in self.budgets or ("own",) for size in sizes}

    def _due(self, trainer: Trainer) -> bool:
        """Whether this validation is certified: every n-th epoch and the last; never the sanity check."""
        epoch = trainer.current_epoch + 1
        return trainer.state.fn == "validate" or (
            not trainer.sanity_checking and (epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs)
        )

    @torch.no_grad()
    def _certify(self, stage: Stage, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        for epsilon in self.epsilons or [module.epsilon]:
            suffix = "" if epsilon == module.epsilon else f"/epsilon_{epsilon:g}"
            for name, threat_model in self._threat_models(module, x, epsilon).items():
                margins = self.verifier.margins(module.classifier, threat_model.interval(x), y)
                verified = (margins > 0).all(1)
                self._count(f"{stage}/verified_error/{name}{suffix}", ErrorRate, ~verified)
                if self.attack is not None:
                    broken = self._broken(module, threat_model, x, y, verified)
                    self._count(f"{stage}/pgd_error/{name}{suffix}", ErrorRate, broken)
                if isinstance(threat_model, PixelBox) and threat_model.budgets.dim() == x.dim():
                    prefix = f"{stage}/budget" if self.budgets is None else f"{stage}/budget/{name}"
                    self._measure(prefix, suffix, threat_model.budgets, epsilon)

    def _threat_models(self, module: RobustClassifier, x: Tensor, epsilon: float) -> Mapping[str, ThreatModel]:
        if self.budgets is None:
            return module.threat_models(x, epsilon)
        return {name: budgets(x, epsilon) for name, budgets in self.budgets.items()}

    def _broken(
        self, module: RobustClassifier, threat_model: ThreatModel, x: Tensor, y: Tensor, verified: Tensor
    ) -> Tensor:
        assert self.attack is not None
        broken: Tensor = module(self.attack(module.classifier, threat_model, x, y)).argmax(1) != y
        if (broken & verified).any():
            raise RuntimeError(
                f"unsound bound: {type(self.verifier).__name__} certified {int((broken & verified).sum())} examples "
                "that PGD breaks inside the same box; please report this with the configuration"
            )
        return broken

    def _measure(self, prefix: str, suffix: str, budgets: Tensor, epsilon: float) -> None:
        log_volume = budgets.double().log().flatten(1).mean(1) - torch.tensor(epsilon, dtype=torch.float64).log()
        self._count(f"{prefix}/log_volume_error{suffix}", MaxMetric, log_volume.abs().float())
        self._count(f"{prefix}/min{suffix}", MinMetric, budgets)
        self._count(f"{prefix}/max{suffix}", MaxMetric, budgets)

    def _count(self, name: str, kind: type[Metric], value: Tensor) -> None:
        if name not in self.metrics:
            self.metrics[name] = kind().to(value.device)
        self.metrics[name].update(value)

    def _report(self, module: RobustClassifier) -> None:
        for name, metric in self.metrics.items():
            # synchronised by the metric itself; sync_dist only averages values that are already equal
            module.log(name, metric.compute(), sync_dist=True)
        self.metrics = {}

    def on_validation_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Certify a validation batch."""
        if self._due(trainer) and (self.max_batches is None or batch_idx < self.max_batches):
            self._certify("val", pl_module, *batch)

    def on_test_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: RobustClassifier, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Certify a test batch."""
        self._certify("test", pl_module, *batch)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an evaluation that was stopped has counted."""
        self.metrics = {}

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an evaluation that was stopped has counted."""
        self.metrics = {}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Log the validation figures."""
        self._report(pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: RobustClassifier) -> None:  # type: ignore[override]
        """Log the test figures."""
        self._report(pl_module)
