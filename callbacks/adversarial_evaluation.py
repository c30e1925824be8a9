"""Attacks the classifier on test and validation data, on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torchmetrics import SumMetric

from callbacks._attacking import Attack, ValidatingEvaluation, attacked, seeded, times_right
from lightning_modules.base import RobustClassifier
from robust.errors import require
from robust.metrics import Accuracy
from robust.threat_models import L1Ball, L2Ball, PixelBox, ThreatModel

TAKEN = ("clean", "union", "average")


@dataclass
class AttackCase:
    """An attack in a threat model.

    Args:
        attack: called as ``attack(network, threat_model, x, y)``, returns images; of :mod:`robust.attacks`, or any.
        threat_model: where it searches; by default each of the module's own, of the module's epsilon.
        group: cases of the same group are counted together, e.g. all those of one norm.
    """

    attack: Attack
    threat_model: PixelBox | L2Ball | L1Ball | None = None
    group: str | None = None


class AdversarialEvaluation(ValidatingEvaluation):
    """Accuracy under each of several attacks, and under the worst of them for each example.

    Logged, as shares in [0, 1] of all examples:

    - ``<stage>/accuracy/clean``
    - ``<stage>/accuracy/<case>``: right on the attacked image. Where the case has no threat model of its own and the
      module has several, ``<stage>/accuracy/<case>/<threat model>`` for each.
    - ``<stage>/accuracy/<group>``: right under all cases of the group
    - ``<stage>/accuracy/union``: right under all cases
    - ``<stage>/accuracy/average``: mean over groups; a case without one is a group of its own
    - ``<stage>/attacked_samples``: number of examples that this is about, over all processes

    An example that is misclassified without perturbation counts as wrong under every attack, and is not attacked.
    Networks that draw random numbers (``RobustClassifier.stochastic``) are treated otherwise: all examples are
    attacked, each image found is judged again in several passes with fresh noise, and a figure is the mean over passes
    and examples. For groups and the union it is the mean of the lowest of the cases' shares for each example.

    Attack and verdict run in the precision of the weights, without autocast. Source: multi-norm training (MNG-AC),
    evaluation; stochastic networks: Learn2Perturb.

    Args:
        attacks: the cases by name.
        every_n_epochs: also evaluate in validation after every so many epochs of training, and after the last; by
            default only in tests and in ``train.py validate``.
        max_batches: attack at most so many batches of each process in validation. The test is as long as
            ``--trainer.limit_test_batches`` has it; ``attacked_samples`` says how long that was.
        judgements: number of passes in which stochastic networks are judged.
        seed: of the attacks' random draws.

    Raises:
        SettingError: if a setting is out of its range, or a name is used twice.
        RuntimeError: if an attack returns images outside its threat model or [0, 1].
    """

    def __init__(
        self,
        attacks: dict[str, AttackCase],
        every_n_epochs: int | None = None,
        max_batches: int | None = None,
        judgements: int = 5,
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
        self.attacks = attacks
        self.judgements = judgements
        self._groups: list[str] = []

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor, batch_idx: int) -> None:
        """See :meth:`AttackingEvaluation.evaluate`."""
        judgements = self.judgements if module.stochastic else 1
        with seeded(x.device, self.seed, module.global_rank, batch_idx):
            clean = times_right(module, x, y, judgements)
        left = torch.arange(len(x), device=x.device) if module.stochastic else clean.nonzero().squeeze(1)
        groups: dict[str, list[Tensor]] = {}
        scores = {"clean": clean}
        for index, (name, case) in enumerate(self.attacks.items()):
            with seeded(x.device, self.seed, module.global_rank, batch_idx, index):
                for threat_name, threat_model in _threat_models(name, case, module, x):
                    right = torch.zeros_like(clean)
                    if len(left) > 0:
                        part, labels = threat_model.select(left), y[left]
                        found = attacked(threat_name, case.attack, module, part, x[left], labels)
                        right[left] = times_right(module, found, labels, judgements)
                    scores[threat_name] = right
                    groups.setdefault(case.group or threat_name, []).append(right)
        worst = {group: torch.stack(cases).amin(0) for group, cases in groups.items()}
        scores |= worst | {"union": torch.stack(list(worst.values())).amin(0)}
        self._groups = list(worst)
        for name, score in scores.items():
            self.count(f"accuracy/{name}", partial(Accuracy, judgements), score)
        self.count("attacked_samples", SumMetric, torch.tensor(len(x), device=x.device))

    def figures(self) -> dict[str, Tensor]:
        """See :meth:`AttackingEvaluation.figures`."""
        found: dict[str, Tensor] = {name: metric.compute() for name, metric in self.metrics.items()}
        average = torch.stack([found[f"accuracy/{group}"] for group in self._groups]).mean()
        return found | {"accuracy/average": average}


def _threat_models(
    name: str, case: AttackCase, module: RobustClassifier, x: Tensor
) -> Iterator[tuple[str, ThreatModel]]:
    """Each threat model of a case, with the name of its figure."""
    if case.threat_model is not None:
        yield name, case.threat_model
        return
    own = module.threat_models(x, module.epsilon)
    for own_name, threat_model in own.items():
        yield (name if len(own) == 1 else f"{name}/{own_name}"), threat_model
