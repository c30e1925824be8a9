"""Attacks the classifier on test and validation data, on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torchmetrics import SumMetric

from callbacks._attacking import Attack, ValidatingEvaluation, attacked
from callbacks._norm_balls import norm_ball
from callbacks._stochastic import MEAN_NETWORK, variants, verdicts
from lightning_modules.base import RobustClassifier
from robust.bounds.verifier import full_precision
from robust.errors import require
from robust.metrics import Accuracy, AccuracyDeviation
from robust.networks import noise_sources, without_noise
from robust.random import part
from robust.threat_models import L1Ball, L2Ball, Norm, PixelBox, ThreatModel, ball

TAKEN = ("clean", "union", "average")


@dataclass
class AttackCase:
    """An attack in a threat model.

    It searches in ``threat_model``, or in the ball of ``norm``; by default in each of the module's threat models.

    Args:
        attack: called as ``attack(network, threat_model, x, y)``, returns images; of :mod:`robust.attacks`, or any.
        threat_model: where it searches.
        group: cases of the same group are counted together, e.g. all those of one norm.
        norm: of the ball in which it searches.
        epsilon: the ball's radius, in pixel units; by default that of the module's ball of this norm, if it has one.

    Raises:
        SettingError: if there is a threat model and a norm, or a radius without norm, or it is out of its range.
    """

    attack: Attack
    threat_model: PixelBox | L2Ball | L1Ball | None = None
    group: str | None = None
    norm: Norm | None = None
    epsilon: float | None = None

    def __post_init__(self) -> None:
        one = self.norm is None or self.threat_model is None
        require(one, "AttackCase.norm", self.norm, "leave out the norm or the threat_model")
        remedy = "give the norm of which it is the radius, or a threat_model with its own"
        require(self.epsilon is None or self.norm is not None, "AttackCase.epsilon", self.epsilon, remedy)
        if self.norm is not None and self.epsilon is not None:
            ball(self.norm, self.epsilon)  # raises if there is none


class AdversarialEvaluation(ValidatingEvaluation):
    """Accuracy under each of several attacks, and under the worst of them for each example.

    Logged, as shares in [0, 1] of all examples:

    - ``<stage>/accuracy/clean``
    - ``<stage>/accuracy/<case>``: right on the attacked image. Where the case has neither threat model nor norm and the
      module has several threat models, ``<stage>/accuracy/<case>/<threat model>`` for each.
    - ``<stage>/accuracy/<group>``: right under all cases of the group
    - ``<stage>/accuracy/union``: right under all cases
    - ``<stage>/accuracy/average``: mean over groups; a case without one is a group of its own
    - ``<stage>/attacked_samples``: number of examples that this is about, over all processes

    An example that is misclassified without perturbation counts as wrong under every attack, and is not attacked.

    Networks with noise (``RobustClassifier.stochastic``) are treated otherwise: all examples are attacked, and each
    image found is judged again in several passes with fresh noise. For clean images and each case:

    - the figure itself is the mean over passes and examples
    - ``.../deviation``: standard deviation, over passes, of the accuracy on all examples
    - ``.../vote``: accuracy of the class that most passes give
    - ``clean/noise_off``: without noise

    and, outside ``fit``, for each attack whose setting ``eot_samples`` is 1:

    - ``.../eot``: the same with gradients that are means over ``eot_samples`` passes
    - ``.../mean_network``: the same with gradients of the network without noise
    - ``.../noise_off``: the latter's images, judged without noise too
    - ``.../worst``: as for groups, over the case, its ``eot`` and its ``mean_network``; where it has no group

    For groups and the union a figure is the mean of the lowest of the cases' shares for each example.

    Attack and verdict run in the precision of the weights, without autocast. Source: multi-norm training (MNG-AC),
    evaluation; stochastic networks: Learn2Perturb.

    Args:
        attacks: the cases by name.
        every_n_epochs: also evaluate in validation after every so many epochs of training, and after the last; by
            default only in tests and in ``train.py validate``.
        max_batches: attack at most so many batches of each process in validation. The test is as long as
            ``--trainer.limit_test_batches`` has it; ``attacked_samples`` says how long that was.
        judgements: number of passes in which networks with noise are judged.
        eot_samples: number of passes over which gradients of networks with noise are averaged.
        seed: of the attacks' random draws.

    Raises:
        SettingError: if a setting is out of its range, or a name is used twice.
        RuntimeError: if an attack returns images outside its threat model or [0, 1].
        ContradictionError: if it breaks what another evaluation of the same test has certified.
    """

    def __init__(
        self,
        attacks: dict[str, AttackCase],
        every_n_epochs: int | None = None,
        max_batches: int | None = None,
        judgements: int = 10,
        eot_samples: int = 30,
        seed: int = 0,
    ) -> None:
        super().__init__(seed, every_n_epochs, max_batches)
        name = "AdversarialEvaluation"
        groups = {case.group for case in attacks.values() if case.group is not None}
        require(len(attacks) > 0, f"{name}.attacks", attacks, "give at least one attack")
        for taken in (*TAKEN, *groups):
            require(taken not in attacks, f"{name}.attacks", taken, "give it a name that no other figure has")
        for taken in TAKEN:
            require(taken not in groups, f"{name}.attacks", taken, "give the group a name that no other figure has")
        require(judgements >= 1, f"{name}.judgements", judgements, "give at least 1")
        require(eot_samples >= 1, f"{name}.eot_samples", eot_samples, "give at least 1")
        self.attacks = attacks
        self.judgements, self.eot_samples = judgements, eot_samples
        self._groups: list[str] = []

    def try_out(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Find each case's threat models."""
        for name, case in self.attacks.items():
            list(_threat_models(name, case, module, x))

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor, batch_idx: int) -> None:
        """See :meth:`AttackingEvaluation.evaluate`."""
        everything = torch.arange(len(x), device=x.device)
        with self.drawing(x, batch_idx):
            scores = {"clean": self._judge("clean", module, x, y, everything)}
        left = everything if module.stochastic else scores["clean"].nonzero().squeeze(1)
        groups: dict[str, list[Tensor]] = {}
        for index, (name, case) in enumerate(self.attacks.items()):
            for threat_name, threat_model in _threat_models(name, case, module, x):
                kinds = variants(threat_name, case.attack, module, self.eot_samples)
                group = case.group or (threat_name if len(kinds) == 1 else f"{threat_name}/worst")
                for figure, attack in kinds.items():
                    with self.drawing(x, batch_idx, index):
                        found = x.clone()
                        if len(left) > 0:
                            own = threat_model.select(left)
                            with part(left):
                                found[left] = attacked(figure, attack, module, own, x[left], y[left])
                        scores[figure] = self._judge(figure, module, found, y, left)
                    self.note_broken(module, threat_model, scores[figure] == 0, figure)
                    groups.setdefault(group, []).append(scores[figure])
        worst = {group: torch.stack(cases).amin(0) for group, cases in groups.items()}
        scores |= worst | {"union": torch.stack(list(worst.values())).amin(0)}
        self._groups = list(worst)
        for figure, score in scores.items():
            self.count(f"accuracy/{figure}", partial(Accuracy, self._passes(module)), score)
        self.count("attacked_samples", SumMetric, torch.tensor(len(x), device=x.device))

    def figures(self) -> dict[str, Tensor]:
        """See :meth:`AttackingEvaluation.figures`."""
        found: dict[str, Tensor] = {name: metric.compute() for name, metric in self.metrics.items()}
        average = torch.stack([found[f"accuracy/{group}"] for group in self._groups]).mean()
        return found | {"accuracy/average": average}

    def _judge(self, figure: str, module: RobustClassifier, x: Tensor, y: Tensor, left: Tensor) -> Tensor:
        """In how many passes each image (B, C, H, W) is right; those not ``left`` are wrong. Whole numbers (B,)."""
        with full_precision(x.device), part(left):
            right, vote = verdicts(module, x[left], y[left], self._passes(module))
        if module.stochastic:
            if self.judgements > 1:
                self.count(f"accuracy/{figure}/deviation", partial(AccuracyDeviation, self.judgements), right)
            self.count(f"accuracy/{figure}/vote", Accuracy, vote)
            if noise_sources(module) and (figure == "clean" or figure.endswith(MEAN_NETWORK)):
                with without_noise(module):
                    alone = module(x).argmax(1) == y
                self.count(f"accuracy/{figure.removesuffix(MEAN_NETWORK)}/noise_off", Accuracy, alone)
        return torch.zeros_like(y).index_copy(0, left, right.sum(0))

    def _passes(self, module: RobustClassifier) -> int:
        return self.judgements if module.stochastic else 1


def _threat_models(
    name: str, case: AttackCase, module: RobustClassifier, x: Tensor
) -> Iterator[tuple[str, ThreatModel]]:
    """Each threat model of a case, with the name of its figure."""
    if case.threat_model is not None:
        yield name, case.threat_model
        return
    if case.norm is not None:
        yield name, norm_ball(f"AdversarialEvaluation.attacks.{name}.epsilon", case.norm, case.epsilon, module, x)
        return
    own = module.threat_models(x, module.epsilon)
    for own_name, threat_model in own.items():
        yield (name if len(own) == 1 else f"{name}/{own_name}"), threat_model
