"""The base of all evaluations: schedule, metrics, unique names, seeds, and files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from callbacks._stages import Stage
from callbacks.evaluation.blank_trial import TriedCallback
from callbacks.evaluation.order import Verdict, check_against_others
from callbacks.evaluation.outcomes import Outcomes
from callbacks.evaluation.resumable import saved_or_computed
from callbacks.evaluation.saved_rows import Rows
from lightning_modules.base import Batch, RobustClassifier, check_precision, index_spacing
from robust.bounds.verifier import full_precision
from robust.errors import require
from robust.evaluation import NO_GRAPH
from robust.metric_names.registry import find
from robust.metrics import Accuracy, Gathered
from robust.random import global_seed, numbered
from robust.threat_models import ThreatModel


class Evaluation(TriedCallback, ABC):
    """Metrics of a classifier on validation and test data; each example counts once on any number of devices.

    Subclasses implement :meth:`evaluate`, which updates metrics by :meth:`update`. They override :meth:`compute` if
    they log other values than the metrics', and :meth:`write` if they write files.

    Args:
        seed: seed of the random draws, which depend on it, the example's index in the data and the attack; draws that
            an attack takes from torch directly depend on batch and process too. Torch's global generators do not
            change.
        every_n_epochs: evaluate in validation at this interval, in epochs, and at the end of the training; by
            default only in tests and in ``train.py validate``.
        max_batches: maximum number of batches of each process in validation; None for all.
        max_test_batches: maximum number of batches of each process in a test; None for all.
        where_possible: if the evaluation does not fit the module, leave it out with a warning and a line in the record,
            instead of raising an error.

    Attributes:
        skipped: reasons why the evaluation or a part of it is left out, by the name of its class or of the part.
        needs_float32: whether the evaluation refuses weights of half precision.
        metrics: metrics by name, without the stage.
        indices: indices in the data of the current batch's examples, int64 (B,).
        certified: verdicts of this evaluation's verifier on the current batch.
        misclassified: verdicts on the current batch without perturbation or under attack.
        recorded: verdicts and margins of single images, for the record of a test.

    Raises:
        SettingError: if a setting is below 1.
    """

    needs_float32: ClassVar[bool] = True

    def __init__(
        self,
        seed: int = 0,
        every_n_epochs: int | None = None,
        max_batches: int | None = None,
        max_test_batches: int | None = None,
        where_possible: bool = False,
    ) -> None:
        super().__init__(seed, where_possible, every_n_epochs, max_batches, max_test_batches)
        self.recorded = Outcomes()
        self.logged: set[str] = set()  # names of the stage's metrics
        self._earlier: set[str] = set()
        self.reset()

    # -- methods that subclasses override ---------------------------------------------------------------------------

    @abstractmethod
    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Update the metrics by images (B, C, H, W) and labels (B,).

        Gradients are computed inside ``with torch.enable_grad():``; the attacks of ``robust`` do so themselves.
        """

    def compute(self, module: RobustClassifier) -> dict[str, Tensor]:
        """The values to log, by name without the stage; called in all processes.

        Columns of single images (:class:`Gathered`) are for :meth:`write` alone.
        """
        return {name: metric.compute() for name, metric in self.metrics.items() if not isinstance(metric, Gathered)}

    def write(self, stage: Stage, module: RobustClassifier, values: dict[str, Tensor]) -> None:
        """Write files into the attribute ``folder``; called in all processes, with the values of :meth:`compute`."""

    def namespaces(self, module: LightningModule) -> set[str]:
        """The settings on which the metrics' names depend; two evaluations of one class must have disjoint sets."""
        return {""}

    # -- methods that subclasses call -------------------------------------------------------------------------------

    def update(self, name: str, metric: Callable[[], Metric], *values: Tensor) -> None:
        """Update the metric of this name, which the first call creates.

        Verdicts on all images of a batch are also stored for the record.
        """
        remedy = "the module logs it, for all images without perturbation; give it another name"
        require(name != "accuracy/clean", f"{type(self).__name__}.update", name, remedy)
        if name not in self.metrics:
            self.metrics[name] = metric().to(values[0].device)
        metric_of_name = self.metrics[name]
        metric_of_name.update(*values)
        if (
            isinstance(metric_of_name, Accuracy)
            and metric_of_name.num_samples == 1
            and len(values[0]) == len(self._rows)
        ):
            self.recorded.update("outcomes", name, self.indices, values[0])

    def note_clean(self, module: RobustClassifier, correct: Tensor) -> None:
        """Record which images are correct without perturbation, bool (B,).

        Verdicts of networks with noise are not recorded, since they differ from pass to pass.
        """
        if not module.stochastic:
            self.recorded.update("outcomes", "accuracy/clean", self.indices, correct)

    def saved(
        self, module: RobustClassifier, key: str, depends_on: object, batch: Batch, compute: Callable[[], Rows]
    ) -> Rows:
        """Return the columns (B, ...) that a stopped test has saved (:class:`ResumableTest`), or compute them.

        Args:
            module: module that is evaluated.
            key: name of the result, unique in this class.
            depends_on: settings on which the result depends, beside the seed and the weights.
            batch: images and labels.
            compute: function that computes the columns; its random draws do not depend on earlier ones.
        """
        key = f"{type(self).__name__}/{key.replace('/', '-')}"
        spacing = self._spacing if module.stochastic else 1  # noise depends on it
        return saved_or_computed(module.trainer, key, [self.seed, spacing, depends_on], self.indices, *batch, compute)

    def rows(self, name: str) -> dict[str, Tensor]:
        """Columns (N, ...) of the :class:`Gathered` metric of that name, over all processes."""
        metric = self.metrics[name]
        assert isinstance(metric, Gathered)
        return metric.rows()

    @contextmanager
    def seeded(self, x: Tensor, *key: int) -> Iterator[None]:
        """Make random draws for the batch ``x`` (B, C, H, W) depend on the seed, ``key`` and the examples' indices."""
        of_process = global_seed(x.device, self.seed, self._rows.start, self._batch_idx, *key)
        with of_process, numbered((self.seed, *key), self._rows, spacing=self._spacing):
            yield

    def note_misclassified(
        self, module: RobustClassifier, threat_model: ThreatModel, misclassified: Tensor, attack: str
    ) -> None:
        """Store a verdict, bool (B,), for the comparison with other evaluations.

        Verdicts of networks with noise are not stored, since they are random.
        """
        if not module.stochastic:
            self.misclassified.append(Verdict(threat_model, misclassified, f"without perturbation or under {attack}"))

    def note_margins(self, name: str, margins: Tensor, chosen: Tensor) -> None:
        """Record the lowest certified margins (B,) of the chosen images of the batch, under the metric's name."""
        self.recorded.update("margins", name, self.indices[chosen], margins[chosen])

    # -- hooks -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module is a classifier of full precision, and that the metrics' names are unique."""
        super().setup(trainer, pl_module, stage)
        if stage == "validate" and "val" not in self.stages:
            rank_zero_warn(f"{type(self).__name__} does not run in validation; run it by train.py test")
        self._check_names(trainer, pl_module)
        if self.needs_float32 and stage != "predict":
            check_precision(pl_module, trainer, type(self).__name__)

    def reset(self) -> None:
        """Reset metrics and verdicts; a stopped evaluation may have left some."""
        self.metrics: dict[str, Metric] = {}
        self.certified: list[Verdict] = []
        self.misclassified: list[Verdict] = []
        self.indices = torch.zeros(0, dtype=torch.long)
        self._rows, self._spacing, self._batch_idx = range(0), 1, 0

    def on_start(self, stage: Stage, trainer: Trainer, module: RobustClassifier) -> None:
        """Reset."""
        self.reset()
        self._earlier |= self.logged
        self.recorded, self.logged = Outcomes(), set()

    @property
    def outdated(self) -> set[str]:
        """Names of metrics that an earlier validation logged and the last one did not; Lightning keeps their values."""
        return self._earlier - self.logged

    def on_batch(self, stage: Stage, trainer: Trainer, module: RobustClassifier, batch: Batch, batch_idx: int) -> None:
        """Evaluate a batch."""
        self.evaluate_batch(module, batch, module.data_indices, batch_idx)

    def evaluate_batch(self, module: RobustClassifier, batch: Batch, indices: range, batch_idx: int) -> None:
        """Evaluate a batch with these indices in the data, and compare its verdicts with those of other evaluations.

        Raises:
            ContradictionError: if one evaluation certifies an example and another one finds it misclassified.
        """
        x, y = batch
        self.certified, self.misclassified = [], []
        self._rows, self._batch_idx = indices, batch_idx
        self._spacing = index_spacing(indices, module.trainer.world_size)
        self.indices = torch.tensor(indices, device=x.device)
        with (
            torch.inference_mode(False),  # autograd rejects its tensors
            torch.no_grad(),
            full_precision(x.device),  # TF32 can contradict a bound
            self.seeded(x),  # for evaluations that draw without a key of their own
        ):
            try:
                self.evaluate(module, x.clone(), y.clone())
            except RuntimeError as error:
                remedy = "evaluations run without gradients; compute them inside `with torch.enable_grad():`"
                require(NO_GRAPH not in str(error), "trainer.callbacks", type(self).__name__, remedy)
                raise
        self._compare(module.trainer)

    def on_finish(self, stage: Stage, trainer: Trainer, module: RobustClassifier) -> None:
        """Log the metrics, and write files."""
        if self.metrics:
            values = self.compute(module)
            single = list(_single_values(values))
            logged = dict(single)
            remedy = "two values have this name; rename one"
            twice = next((name for name, _ in single if [other for other, _ in single].count(name) > 1), None)
            require(twice is None, f"{type(self).__name__}.compute", twice, remedy)
            self._note_logged(trainer, logged)
            if stage == "test":
                self.recorded.finish(stage)
            self.write(stage, module, values)
            for name, value in logged.items():
                # the metrics synchronise themselves; sync_dist averages equal values, and avoids Lightning's warning
                module.log(f"{stage}/{name}", value, sync_dist=True)
        self.reset()

    def _note_logged(self, trainer: Trainer, values: dict[str, Tensor]) -> None:
        """Store the metrics' names, and refuse one that another evaluation logged: Lightning would average both."""
        self.logged = set(values)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        for other in callbacks:
            shared = sorted(self.logged & other.logged) if isinstance(other, Evaluation) and other is not self else []
            remedy = f"{type(other).__name__} and {type(self).__name__} both log it; run one at a time"
            require(not shared, "trainer.callbacks", ", ".join(shared), remedy)

    def _compare(self, trainer: Trainer) -> None:
        """Compare this evaluation's verdicts on the batch with those of the evaluations that ran before."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        for other in callbacks[: callbacks.index(self)]:
            if isinstance(other, Evaluation):
                shared = sorted(name for name in self.metrics.keys() & other.metrics.keys() if find(f"test/{name}"))
                remedy = f"{type(other).__name__} and {type(self).__name__} both log it; rename the attack of one"
                require(not shared, "trainer.callbacks", ", ".join(shared), remedy)
            if isinstance(other, Evaluation) and self._rows == other._rows:
                check_against_others(self.certified, other.misclassified, self.indices)
                check_against_others(other.certified, self.misclassified, self.indices)

    def _check_names(self, trainer: Trainer, module: LightningModule) -> None:
        """Check that no other evaluation logs metrics of the same names: Lightning would average them."""
        name = type(self).__name__
        remedy = f"it is not a classifier; remove {name} from trainer.callbacks"
        require(isinstance(module, RobustClassifier), "model", type(module).__name__, remedy)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        same_class = [other for other in callbacks if isinstance(other, type(self)) or isinstance(self, type(other))]
        same_names = [other for other in same_class if other.namespaces(module) & self.namespaces(module)]
        remedy = "their metrics have the same names; run one at a time. --trainer.callbacks '[]' after the method's "
        remedy += "config removes the callbacks of that config"
        require(len(same_names) == 1, "trainer.callbacks", f"{len(same_names)} x {name}", remedy)


def _single_values(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Each single value and its name; those of a mapping or a tensor are named after their keys or indices."""
    parts = values
    if isinstance(values, Tensor):
        parts = dict(enumerate(values)) if values.dim() > 0 and values.numel() != 1 else None
    if not isinstance(parts, Mapping):
        yield name, values
        return
    for key, value in parts.items():
        yield from _single_values(value, f"{name}/{key}".lstrip("/"))
