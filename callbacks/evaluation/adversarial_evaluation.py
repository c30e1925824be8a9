"""Accuracy under attack on test and validation data, on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchmetrics import SumMetric

from callbacks.evaluation.attack_settings import CALL, check_call, check_names, named_ball, norm_ball
from callbacks.evaluation.base import Evaluation
from lightning_modules.base import RobustClassifier
from robust.errors import SettingError, require
from robust.evaluation import (
    MEAN_NETWORK,
    Attack,
    attack_variants,
    checked_attack,
    judge_repeatedly,
    under_the_strongest,
)
from robust.metric_names.registry import threat_model_name
from robust.metrics import Accuracy, AccuracyStd
from robust.networks import noise_sources, without_noise
from robust.progress import tracked
from robust.random import part
from robust.threat_models import L1Ball, L2Ball, Norm, PixelBox, ThreatModel, ball

NAME = "AdversarialEvaluation"
RESERVED = ("clean", "union", "average", "worst", "group", "a_rob")  # parts of other metrics' names


@dataclass
class AttackCase:
    """An attack in a threat model.

    The attack searches ``threat_model``, or the ball of ``norm``; by default each of the module's threat models.

    Args:
        attack: attack, from :mod:`robust.attacks` or elsewhere; called as ``attack(network, threat_model, x, y)``, it
            returns images (B, C, H, W).
        threat_model: threat model that the attack searches.
        group: name of a group of cases, such as all cases of one norm, which also share a metric.
        norm: norm of the ball that the attack searches.
        epsilon: radius of the ball in pixel units; by default the radius of the module's ball of this norm, if any.
        name: name of the attack in metrics; by default the name of the case. Cases with the same name need different
            threat models.

    Raises:
        SettingError: if both a threat model and a norm are given, or a radius is given without a norm or is out of its
            range.
    """

    attack: Attack
    threat_model: PixelBox | L2Ball | L1Ball | None = None
    group: str | None = None
    norm: Norm | None = None
    epsilon: float | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        one = self.norm is None or self.threat_model is None
        require(one, "AttackCase.norm", self.norm, "give either a norm or a threat_model")
        remedy = "give a norm too, or a threat_model instead"
        require(self.epsilon is None or self.norm is not None, "AttackCase.epsilon", self.epsilon, remedy)
        if self.norm is not None and self.epsilon is not None:
            ball(self.norm, self.epsilon)  # raises if there is no such ball


class AdversarialEvaluation(Evaluation):
    """Accuracy under each of several attacks, and under the worst of them for each example.

    Logged, as fractions in [0, 1] of all examples:

    - ``<stage>/accuracy/<attack>/<threat model>``: correct on the attacked image. The attack's name is the name of its
      case; the threat model is ``<norm>_<size>`` for balls, else the module's name for it, such as ``own_budgets``
    - ``<stage>/accuracy/worst/<group>``: correct under all cases of the group
    - ``<stage>/accuracy/union``: correct under all cases
    - ``<stage>/accuracy/average``: mean over groups; a case without a group is a group of its own
    - ``<stage>/accuracy/clean/attacked``: correct without perturbation. It is logged if ``max_batches`` limits the
      evaluation or the network has noise; otherwise it equals the module's own ``<stage>/accuracy/clean``
    - ``<stage>/attacked_samples``: number of examples, over all processes

    An example that is misclassified without perturbation is not attacked, and counts as misclassified under every
    attack.

    Networks with noise (``RobustClassifier.stochastic``) differ: all examples are attacked, and ``num_samples`` passes
    with fresh noise classify each attacked image. For clean images and each case:

    - the metric itself: mean over passes and examples
    - ``.../std``: std, over passes, of the accuracy on all examples
    - ``.../vote``: accuracy of the class that most passes predict
    - ``accuracy/clean/noise_off``: accuracy without noise

    and, outside ``fit``, for each attack whose setting ``num_samples`` is 1:

    - ``accuracy/<attack>_eot/...``: the same with gradients averaged over ``gradient_samples`` passes
    - ``accuracy/<attack>_mean_network/...``: the same with gradients of the network without noise; its ``noise_off``
      is the accuracy without noise on these images
    - ``accuracy/<attack>_worst/...``: as for groups, over these three; only for cases without group

    For groups and the union, each pass counts under the case that broke most of the example's other passes. To choose
    for each example the case with the fewest correct passes would underestimate the accuracy. If the metric of a single
    case over all examples is lower than this result, it replaces the result.

    Attacks and classification run in the precision of the weights, without autocast.

    Source: multi-norm training (MNG-AC), evaluation; stochastic networks: Learn2Perturb.

    Args:
        attacks: cases by name.
        balls: radius by norm; a case without a threat model attacks in each of these balls, and each ball is a group.
        every_n_epochs: also evaluate in validation at this interval, in epochs, and at the end of the training;
            by default only in tests and in ``train.py validate``.
        max_batches: maximum number of batches of each process in validation. ``--trainer.limit_test_batches`` limits
            the test; ``attacked_samples`` gives the number of examples.
        num_samples: number of passes that classify each image, for networks with noise.
        gradient_samples: number of passes over which gradients of networks with noise are averaged.
        where_possible: if ``check(network, threat_model, x)`` of an attack raises, such as AutoAttack's where its
            package is not installed, leave out the attack with a warning and a line in the record.
        seed: seed of the attacks' random draws.

    Raises:
        SettingError: if a setting is out of its range, a name is used twice, or an attack cannot attack the network.
        RuntimeError: if an attack returns images outside its threat model or [0, 1].
        ContradictionError: if an attack breaks an example that another evaluation of the same test certifies.
    """

    def __init__(
        self,
        attacks: dict[str, AttackCase],
        every_n_epochs: int | None = None,
        max_batches: int | None = None,
        num_samples: int = 10,
        gradient_samples: int = 30,
        balls: dict[Norm, float] | None = None,
        where_possible: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(seed, every_n_epochs, max_batches, where_possible=where_possible)
        self.balls: dict[Norm, float] = balls or {}
        require(balls != {}, f"{NAME}.balls", balls, "give a radius for at least one norm, or leave it out")
        for norm, radius in self.balls.items():
            named_ball(f"{NAME}.balls.{norm}", norm, radius)
        setting = f"{NAME}.attacks"
        require(len(attacks) > 0, setting, attacks, "give at least one attack")
        names = [case.name or key for key, case in attacks.items()]
        for name in names:
            require(name not in RESERVED, setting, name, "give it a name that no other metric has")
        check_names(setting, [*names, *(case.group for case in attacks.values() if case.group is not None)])
        for key, case in attacks.items():
            check_call(f"{setting}.{key}.attack", case.attack, *CALL)
        require(num_samples >= 1, f"{NAME}.num_samples", num_samples, "give at least 1")
        require(gradient_samples >= 1, f"{NAME}.gradient_samples", gradient_samples, "give at least 1")
        self.attacks = attacks
        self.num_samples, self.gradient_samples = num_samples, gradient_samples
        self._parts: dict[str, list[str]] = {}

    def try_out(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Check that each case's attack fits its threat models, and that no two cases have the same metric."""
        names = [
            f"{variant}/{threat_model}"
            for key, case in self.attacks.items()
            for threat_model, _, _ in self._threat_models(key, case, module, x)
            for variant in self._all_variants(case.name or key, case.attack, module)
        ]
        twice = next((name for name in names if names.count(name) > 1), None)
        require(
            twice is None, f"{NAME}.attacks", twice, "two cases have this name in the same threat model; rename one"
        )
        refusals: dict[str, SettingError] = {}
        for key, case in self.attacks.items():
            check: Any = getattr(case.attack, "check", None)
            try:
                for _, threat_model, _ in self._threat_models(key, case, module, x) if check else ():
                    check(module, threat_model, x)
            except SettingError as error:
                error.args = (f"{NAME}.attacks.{key}.attack.{error}",)
                refusals[key] = error
        if refusals and not (self.where_possible and refusals.keys() < self.attacks.keys()):
            raise next(iter(refusals.values()))
        for key, refusal in refusals.items():
            self.skip(f"{NAME}.{key}", refusal)

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:  # noqa: D102
        all_examples = torch.arange(len(x), device=x.device)
        with self.seeded(x):
            clean = self._count("clean", module, self._judged("clean", module, x, y, all_examples))
        self.note_clean(module, clean)
        remaining = all_examples if module.stochastic else clean.nonzero().squeeze(1)
        counts: dict[str, Tensor] = {}
        groups: dict[str, dict[str, Tensor]] = {}  # whether each pass (B, S) is correct under each attack
        for run in tracked(list(self._runs(module, x))):
            case = list(self.attacks.values())[run.index]  # and its index, on which the draws depend
            settings = [run.index, case, self.gradient_samples, self._num_samples(module)]
            compute = partial(self._attacked, module, run, x, y, remaining)
            judged = self.saved(module, run.metric, settings, (x, y), compute)
            counts[run.metric] = self._count(run.metric, module, judged)
            self.note_misclassified(module, run.threat_model, counts[run.metric] == 0, run.metric)
            groups.setdefault(run.group, {})[run.metric] = judged["correct"]
        cases = {name: [*correct.values()] for name, correct in groups.items()}
        cases["union"] = [correct for group in cases.values() for correct in group]
        counts |= {name: under_the_strongest(torch.stack(correct)) for name, correct in cases.items()}
        self._parts = {name: list(attacks) for name, attacks in groups.items()} | {"union": list(groups)}
        if module.stochastic or (self.max_batches is not None and not module.trainer.testing):
            counts["clean/attacked"] = clean
        for metric, count in counts.items():
            self.update(f"accuracy/{metric}", partial(Accuracy, self._num_samples(module)), count)
        self.update("attacked_samples", SumMetric, torch.tensor(len(x), device=x.device))

    def _runs(self, module: RobustClassifier, x: Tensor) -> Iterator[_Run]:
        """Each attack in each threat model."""
        for index, (key, case) in enumerate(self.attacks.items()):
            if f"{NAME}.{key}" in self.skipped:
                continue
            name = case.name or key
            variants = self._variants(name, case.attack, module)
            for model_name, threat_model, own_group in self._threat_models(key, case, module, x):
                alone = f"{name if len(variants) == 1 else f'{name}_worst'}/{model_name}"
                group = case.group or own_group
                for variant, attack in variants.items():
                    metric = f"{variant}/{model_name}"
                    yield _Run(index, metric, f"worst/{group}" if group else alone, threat_model, attack)

    def _attacked(
        self, module: RobustClassifier, run: _Run, x: Tensor, y: Tensor, remaining: Tensor
    ) -> dict[str, Tensor]:
        """Attack the images and return the verdicts of :meth:`_judged` on them."""
        with self.seeded(x, run.index):
            x_adv = x.clone()
            if len(remaining) > 0:
                subset, labels = run.threat_model.select(remaining), y[remaining]
                with part(remaining):
                    x_adv[remaining] = checked_attack(run.metric, run.attack, module, subset, x[remaining], labels)
            return self._judged(run.metric, module, x_adv, y, remaining)

    def compute(self, module: RobustClassifier) -> dict[str, Tensor]:
        """The metrics and the mean over groups; a group's metric is at most that of each of its parts."""
        values = super().compute(module)
        for name, parts in self._parts.items():  # with noise, the choice of the attack on an image can be a poor one
            values[f"accuracy/{name}"] = torch.stack([values[f"accuracy/{part}"] for part in (name, *parts)]).amin()
        average = torch.stack([values[f"accuracy/{group}"] for group in self._parts["union"]]).mean()
        return values | {"accuracy/average": average}

    def _variants(self, name: str, attack: Attack, module: RobustClassifier) -> dict[str, Attack]:
        """The variants of an attack by their names in metrics; in training only the attack itself, to save time."""
        if module.stochastic and module.trainer.state.fn == "fit":
            return {name: attack}
        return self._all_variants(name, attack, module)

    def _all_variants(self, name: str, attack: Attack, module: RobustClassifier) -> dict[str, Attack]:
        return attack_variants(name, attack, module, stochastic=module.stochastic, num_samples=self.gradient_samples)

    def _judged(
        self, metric: str, module: RobustClassifier, x: Tensor, y: Tensor, remaining: Tensor
    ) -> dict[str, Tensor]:
        """Whether each pass classifies each image correctly, bool (B, S); false outside ``remaining``.

        Networks with noise also have the verdict of the majority and the verdict without noise, bool (B,).
        """
        with part(remaining):
            correct, vote = judge_repeatedly(module, x[remaining], y[remaining], self._num_samples(module))
        judged = {"correct": torch.zeros(len(y), len(correct), dtype=torch.bool, device=y.device)}
        judged["correct"][remaining] = correct.T
        if module.stochastic:
            judged["vote"] = vote
            if noise_sources(module) and (metric == "clean" or metric.partition("/")[0].endswith(MEAN_NETWORK)):
                with without_noise(module):
                    judged["noise_off"] = module(x).argmax(1) == y
        return judged

    def _count(self, metric: str, module: RobustClassifier, judged: dict[str, Tensor]) -> Tensor:
        """Number of passes that classify each image correctly, int64 (B,); updates the metrics of noisy networks."""
        correct = judged["correct"]
        if module.stochastic and self.num_samples > 1:
            self.update(f"accuracy/{metric}/std", partial(AccuracyStd, self.num_samples), correct.T)
        for column in ("vote", "noise_off"):
            if column in judged:
                self.update(f"accuracy/{metric}/{column}", Accuracy, judged[column])
        return correct.sum(1)

    def _num_samples(self, module: RobustClassifier) -> int:
        return self.num_samples if module.stochastic else 1

    def _threat_models(
        self, key: str, case: AttackCase, module: RobustClassifier, x: Tensor
    ) -> Iterator[tuple[str, ThreatModel, str | None]]:
        """Yield the name in metrics and the threat model of a case, and its group unless the case names one."""
        given: PixelBox | L2Ball | L1Ball | None = case.threat_model
        if case.norm is not None:
            epsilon = self.balls.get(case.norm) if case.epsilon is None else case.epsilon
            given = norm_ball(f"{NAME}.attacks.{key}.epsilon", case.norm, epsilon, module, x)
        if given is None and self.balls:
            for norm, radius in self.balls.items():
                yield threat_model_name(norm, radius), ball(norm, radius), norm
        elif given is None:
            for name, threat_model in module.threat_models(x, module.epsilon).items():
                yield name, threat_model, None
        elif given.norm is not None and given.epsilon is not None:
            group = given.norm if self.balls.get(given.norm) == given.epsilon else None
            yield threat_model_name(given.norm, given.epsilon), given, group
        else:
            yield f"{key}_budgets", given, None


@dataclass(frozen=True)
class _Run:
    """One attack in one threat model: the case's index, and the names of its metric and its group."""

    index: int
    metric: str
    group: str
    threat_model: ThreatModel
    attack: Attack
