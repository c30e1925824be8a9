"""Certified accuracy on validation and test data, on any number of processes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import MaxMetric, MinMetric, SumMetric

from callbacks._stages import tested_loader
from callbacks.evaluation.base import Evaluation
from callbacks.evaluation.common_map import SeenExamples
from callbacks.evaluation.order import Verdict, check_order
from callbacks.evaluation.saved_rows import Rows
from callbacks.evaluation.verifiers import require_volume, try_verifier
from lightning_modules.base import RobustClassifier, num_images
from robust.attacks import PGD
from robust.bounds import Auto, Verifier, certify
from robust.budgets import LearnedBudgets
from robust.errors import SettingError, require
from robust.metric_names.registry import threat_model_name
from robust.metrics import Accuracy, CommonVariance
from robust.progress import tracked
from robust.random import part
from robust.threat_models import Norm, PixelBox, ThreatModel, ball

NAME = "CertifiedEvaluation"
CHECK_STEPS = 5
_COMMON = "common_variance"
Method = Literal["ibp", "crown-ibp", "tightest", "crown", "alpha-crown"]  # the methods of both verifiers


class CertifiedEvaluation(Evaluation):
    """Certified accuracy in each of the module's threat models, each example counted once.

    An example is certified if the verifier's margin bound is above 0 for every other class. Logged:

    - ``<stage>/certified_accuracy/<threat model>``: fraction of examples that are certified. The threat model is
      ``<norm>_<size>`` for balls, and ``own_budgets`` for learned budgets; sizes that ``epsilons`` gives are appended
      as ``_<size>``. With several ``methods``, an example is certified if any of them certifies it, and
      ``.../<method>`` is the fraction of each
    - ``<stage>/accuracy/pgd_<steps>/<threat model>``, by default in tests: fraction of examples that are correct
      without perturbation and under a short attack in the same box
    - ``<stage>/recomputed_samples/<threat model>``, in tests: number of verdicts that needed float64
    - ``<stage>/budget/<threat model>/min``, ``max`` and ``log_volume_error``, for learned budgets:
      ``log_volume_error`` is the largest distance of a mean log budget from log epsilon
    - ``<stage>/budget/<threat model>/common_variance``, for learned budgets: fraction of the variance of log budgets
      that one map for all examples has (:class:`robust.metrics.CommonVariance`); 1 if budgets depend on the pixel alone
    - ``<stage>/certified_accuracy/<threat model>/common_map``, for learned budgets: certified accuracy if every example
      has the budgets of that map, the geometric mean over the examples, which has the same volume and range

    Source: contextual budgets, Sec. 4.1.

    If a certified example is misclassified, without perturbation or under the attack, a bound is wrong and the
    evaluation stops. The common map is known after the last example, so examples with learned budgets stay in main
    memory.

    ``budgets`` replaces the module's threat models, e.g. to evaluate a uniform model in the budgets that another model
    has learned: ``<stage>/certified_accuracy/<name>``, ``<stage>/budget/<name>/min``, and so on.

    Args:
        verifier: verifier that computes the margins; ``auto`` is the module's verifier, which is chosen by the
            classifier's layers unless the module has a setting for it. It is tried on a blank image first.
        methods: methods of the verifier, such as ``ibp`` and ``crown-ibp``; by default the verifier's own method.
        norm: norm of a ball to certify in, instead of the module's threat models; for ``linf`` the budgets that the
            module has learned are certified, too. With ``epsilons``, the balls are the same for all modules.
        epsilons: sizes of the threat models in (0, 1], for ``norm`` ``l2`` and ``l1`` above 0; by default the module's
            epsilon.
        every_n_epochs: certify in validation at this interval, in epochs of training.
        max_batches: maximum number of batches of each process in validation; tests certify all.
        pgd_steps: steps of PGD in validation and in tests; by default 5 in tests and no attack in validation; 0 for no
            attack at all.
        budgets: other budgets by name.
        rounding_safe: in tests, bound the rounding errors of margins, and bound again in float64 the margins that are
            closer to 0 than their error, so that certificates hold in exact arithmetic
            (:func:`robust.bounds.certify`).
        margin_samples: number of test images, evenly spaced, whose lowest margins are recorded. The verdicts on the
            other images do not need all margins, which makes linear bounds several times faster.
        where_possible: if the verifier or some of its methods cannot bound the network, leave these out with a warning
            and a line in the record, instead of raising an error.
        seed: seed of the attack's random starts, as in :class:`AdversarialEvaluation`.

    Raises:
        SettingError: if a setting is out of its range, the network has noise, or the verifier cannot bound it.
        ContradictionError: if a certified example is misclassified.
    """

    def __init__(
        self,
        verifier: Verifier | Auto = "auto",
        methods: list[Method] | None = None,
        norm: Norm | None = None,
        epsilons: list[float] | None = None,
        every_n_epochs: int = 1,
        max_batches: int | None = None,
        pgd_steps: int | None = None,
        budgets: dict[str, LearnedBudgets] | None = None,
        rounding_safe: bool = True,
        margin_samples: int = 500,
        where_possible: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(seed, every_n_epochs, max_batches, where_possible=where_possible)
        remedy = "give each once, or leave it out"
        require(methods is None or len(methods) == len(set(methods)) > 0, f"{NAME}.methods", methods, remedy)
        require(
            norm is None or budgets is None, f"{NAME}.norm", norm, "leave it out: budgets replace all threat models"
        )
        for epsilon in epsilons or []:
            remedy = "give sizes in (0, 1], in pixel units; above 1 with norm l2 or l1 only"
            require(epsilon > 0 and (epsilon <= 1 or norm in ("l2", "l1")), f"{NAME}.epsilons", epsilon, remedy)
        twice = len({f"{epsilon:g}" for epsilon in epsilons or []}) < len(epsilons or [])
        require(not twice, f"{NAME}.epsilons", epsilons, "give sizes with different names in six digits, each once")
        steps = 0 if pgd_steps is None else pgd_steps
        require(steps >= 0, f"{NAME}.pgd_steps", pgd_steps, "give 0 for no attack, or a number of steps")
        require(margin_samples >= 0, f"{NAME}.margin_samples", margin_samples, "give 0 for none, or a number of images")
        require(budgets != {}, f"{NAME}.budgets", budgets, "give at least one, or leave it out")
        self.verifier = verifier
        self.methods = methods
        self.norm = norm
        self.epsilons = epsilons
        self.budgets = budgets
        self.pgd_steps = pgd_steps
        self.rounding_safe = rounding_safe
        self.margin_samples = margin_samples
        self._seconds = 0.0
        self._by_method: dict[str, Any] = {}

    def namespaces(self, module: LightningModule) -> set[str]:
        """The names of the budgets, each combined with each norm and each size."""
        sizes: list[Any] = self.epsilons or [module.epsilon]
        radii = getattr(module, "radii", None)
        own = list(radii) if isinstance(radii, dict) else [getattr(module, "norm", "linf")]
        norms = own if self.norm is None else [self.norm]
        names = self.budgets or ("own",)
        return {f"{budgets} of {norm} {size}" for budgets in names for norm in norms for size in sizes}

    def reset(self) -> None:
        """Reset, and drop the examples of the last stage."""
        super().reset()
        self._seen, self._seconds = SeenExamples(), 0.0

    def try_out(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Bound the network once in each threat model, by each method."""
        _require_no_noise(module)
        if self.budgets:
            require_volume(NAME, self.epsilons, module)
        verifiers, refusals, safe = self._verifiers(module), {}, self.rounding_safe
        for method, verifier in verifiers.items():
            try:
                for epsilon in self.epsilons or [module.epsilon]:
                    for threat_model in self._threat_models(module, x, epsilon).values():
                        try_verifier(f"{NAME}.verifier", verifier, module, threat_model.region(x), y, safe)
            except SettingError as error:
                if not self.where_possible:
                    raise
                refusals[method] = error
        if len(refusals) == len(verifiers):
            raise next(iter(refusals.values()))
        for method, refusal in refusals.items():
            self.skip(f"{NAME}.{method}", refusal)

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:  # noqa: D102
        _require_no_noise(module)  # it may begin in the course of a training
        clean = module(x).argmax(1) == y
        self.note_clean(module, clean)
        index, learned = 0, False
        for epsilon in tracked(self.epsilons or [module.epsilon]):
            for key, threat_model in tracked(list(self._threat_models(module, x, epsilon).items())):
                named = threat_model.norm is not None or self.epsilons is None  # a ball's name has its size
                name = key if named else f"{key}_{epsilon:g}"
                self._certify(module, name, threat_model, x, y, clean, index)
                if threat_model.per_pixel is not None:
                    self._measure(f"budget/{name}", threat_model.per_pixel.expand_as(x), epsilon)
                    learned = True
                index += 1
        if learned:
            self._seen.add(x, y, clean, self._rows)

    def _certify(
        self,
        module: RobustClassifier,
        name: str,
        threat_model: ThreatModel,
        x: Tensor,
        y: Tensor,
        clean: Tensor,
        index: int,
    ) -> None:
        """Certify and attack a batch in one threat model, and compare the verdicts."""
        settings = [self.methods, self._verifier(module), self.budgets, self.rounding_safe, self.margin_samples]
        chosen = self._with_margins(module)
        run = partial(self._verified, module, threat_model, x, y, chosen)
        judged = self.saved(module, name, settings, (x, y), run)
        missing = chosen & judged["margins"].isnan()
        if bool(missing.any()):  # saved by a test of other images, which recorded other margins
            again = self._verified(module, threat_model.select(missing), x[missing], y[missing], missing[missing])
            judged["margins"] = judged["margins"].masked_scatter(missing, again["margins"])
        methods = list(self._verifiers(module))
        verifier = "/".join([type(self._verifier(module)).__name__, *(filter(None, methods))])
        verified, misclassified = judged["certified"].any(1), ~clean
        for index_of_method, method in enumerate(methods if len(methods) > 1 else []):
            by_method = judged["certified"][:, index_of_method]
            self.update(f"certified_accuracy/{name}/{method.replace('-', '_')}", Accuracy, by_method)
        if self.rounding_safe and module.trainer.testing:
            self.update(f"recomputed_samples/{name}", SumMetric, judged["recomputed"].sum())
        steps = CHECK_STEPS if self.pgd_steps is None and module.trainer.testing else self.pgd_steps
        if steps:
            with self.seeded(x, index):
                misclassified = self._attack(module, PGD(steps, early_stop=True), threat_model, x, y, clean)
            self.update(f"accuracy/pgd_{steps}/{name}", Accuracy, ~misclassified)
        how = "without perturbation" + (f" or under {steps} steps of PGD in the same box" if steps else "")
        check_order(verified, misclassified, self.indices, verifier, how)
        self.certified.append(Verdict(threat_model, verified, verifier))
        if module.trainer.testing and self.margin_samples > 0:  # even without any in the batch: processes gather them
            self.note_margins(f"certified_accuracy/{name}", judged["margins"], chosen)
        self.note_misclassified(module, threat_model, misclassified, f"PGD of {NAME}")
        self.update(f"certified_accuracy/{name}", Accuracy, verified)

    def _verifier(self, module: RobustClassifier) -> Verifier:
        return module.verifier if isinstance(self.verifier, str) else self.verifier

    def _verifiers(self, module: RobustClassifier) -> dict[str, Verifier]:
        """The verifier with each method that is not left out, by method; without ``methods``, under an empty name."""
        verifier: Any = self._verifier(module)
        if self.methods is None:
            return {"": verifier}
        remedy = f"{type(verifier).__name__} has no setting method; leave it out"
        require(hasattr(verifier, "method"), f"{NAME}.methods", self.methods, remedy)
        for method in self.methods:
            if method not in self._by_method:  # copied once, since LirpaVerifier stores the graphs that it has traced
                self._by_method[method] = copied = copy.copy(verifier)
                copied.method = method
        return {method: each for method, each in self._by_method.items() if f"{NAME}.{method}" not in self.skipped}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the module and the names, and drop the verifiers of an earlier module."""
        super().setup(trainer, pl_module, stage)
        self._by_method = {}

    def _threat_models(self, module: RobustClassifier, x: Tensor, epsilon: float) -> Mapping[str, ThreatModel]:
        if self.budgets is not None:
            return {name: budgets(x, epsilon) for name, budgets in self.budgets.items()}
        equal = {} if self.norm is None else {threat_model_name(self.norm, epsilon): ball(self.norm, epsilon)}
        if self.norm in ("l2", "l1"):  # learned budgets are linf budgets: a size in l2 or l1 means another set
            return equal
        own = module.threat_models(x, epsilon)
        return own if self.norm is None else equal | {name: each for name, each in own.items() if each.norm is None}

    def _verified(
        self, module: RobustClassifier, threat_model: ThreatModel, x: Tensor, y: Tensor, chosen: Tensor
    ) -> Rows:
        """The verdicts on a batch.

        Columns: ``certified``, bool (B, M), for each of M methods; ``margins`` (B,), the lowest ones, NaN of images
        that are not ``chosen``; ``recomputed`` (B,), the number of methods whose verdict needed float64.
        """
        safe, verifiers = self.rounding_safe and module.trainer.testing, list(self._verifiers(module).values())
        decided = partial(certify, network=module.classifier, rounding_safe=safe)
        by_method = [
            decided(each, threat_model=threat_model, x=x, y=y, margins=bool(chosen.all())) for each in verifiers
        ]
        margins = x.new_full((len(verifiers), len(x)), torch.nan)
        for lowest, verifier, verdicts in zip(margins, verifiers, by_method, strict=True):
            if verdicts.margins is not None:
                lowest.copy_(verdicts.margins)
            elif bool(chosen.any()):
                again = decided(verifier, threat_model=threat_model.select(chosen), x=x[chosen], y=y[chosen])
                lowest[chosen] = again.margins
        self._seconds += sum(verdicts.seconds for verdicts in by_method)
        return {
            "certified": torch.stack([verdicts.certified for verdicts in by_method], 1),
            "margins": margins.amax(0),
            "recomputed": torch.stack([verdicts.recomputed for verdicts in by_method]).sum(0),
        }

    def _with_margins(self, module: RobustClassifier) -> Tensor:
        """Whether the margins of each example of the batch are recorded, bool (B,)."""
        loader: Any = tested_loader(module.trainer) if module.trainer.testing else None
        tested = num_images(loader)
        if not tested or self.margin_samples == 0:
            return torch.zeros_like(self.indices, dtype=torch.bool)
        step = max(len(loader.dataset) // tested, 1)  # data.test_images are evenly spaced, too
        return self.indices // step % max(tested // self.margin_samples, 1) == 0

    def _attack(
        self, module: RobustClassifier, attack: PGD, threat_model: ThreatModel, x: Tensor, y: Tensor, clean: Tensor
    ) -> Tensor:
        """Whether each example is misclassified, without perturbation or under the attack, bool (B,)."""
        misclassified, remaining = ~clean, clean.nonzero().squeeze(1)
        if len(remaining) > 0:
            with part(remaining):
                x_adv = attack(module.classifier, threat_model.select(remaining), x[remaining], y[remaining])
            misclassified[remaining] = module(x_adv).argmax(1) != y[remaining]
        return misclassified

    def _measure(self, prefix: str, budgets: Tensor, epsilon: float) -> None:
        log_volume = budgets.double().log().flatten(1).mean(1) - torch.tensor(epsilon, dtype=torch.float64).log()
        self.update(f"{prefix}/log_volume_error", MaxMetric, log_volume.abs().float())
        self.update(f"{prefix}/min", MinMetric, budgets)
        self.update(f"{prefix}/max", MaxMetric, budgets)
        shape = (budgets.shape[1], budgets.shape[2], budgets.shape[3])
        self.update(f"{prefix}/{_COMMON}", partial(CommonVariance, shape), budgets)

    def _certify_common_map(self, module: RobustClassifier, name: str, common: Tensor) -> None:
        """Certify all examples of this process in budgets ``common`` (C, H, W)."""
        safe, threat_model = self.rounding_safe and module.trainer.testing, PixelBox(common[None])
        for x, y, clean, rows in self._seen.on(module.device):
            self._rows, self.indices = rows, torch.tensor(rows, device=module.device)
            certified = torch.zeros_like(clean)
            for method, verifier in self._verifiers(module).items():
                verdicts = certify(verifier, module.classifier, threat_model, x, y, rounding_safe=safe, margins=False)
                certified |= verdicts.certified
                how = f"{type(verifier).__name__} {method}".strip()
                check_order(certified, ~clean, self.indices, how, "without perturbation, in the common map of budgets")
            self.update(f"certified_accuracy/{name}/common_map", Accuracy, certified)

    def compute(self, module: RobustClassifier) -> dict[str, Tensor]:
        """Certify in the common map of all learned budgets, and return all metrics.

        Prints how many verdicts needed float64.
        """
        learned = {name.split("/")[1]: metric for name, metric in self.metrics.items() if name.endswith(_COMMON)}
        with torch.inference_mode(False), torch.no_grad():
            for name, metric in learned.items():
                assert isinstance(metric, CommonVariance)
                self._certify_common_map(module, name, metric.common().to(self._seen.dtype))
        values = super().compute(module)
        if count := sum(int(value) for name, value in values.items() if name.startswith("recomputed_samples/")):
            seconds, self._seconds = self._seconds, 0.0
            rank_zero_info(f"{NAME}: verdicts in float64, of margins near 0: {count} ({seconds:.1f} s of process 0)")
        return values


def _require_no_noise(module: RobustClassifier) -> None:
    remedy = "its predictions differ from pass to pass, so that no bound holds for them; leave it out"
    require(not module.stochastic, NAME, type(module).__name__, remedy)
