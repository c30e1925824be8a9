"""How networks with noise are attacked and judged (Learn2Perturb's rows of the evaluation protocols)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from callbacks._attacking import Attack
from lightning_modules.base import RobustClassifier
from robust.networks import noise_sources, without_noise
from robust.threat_models import ThreatModel

MEAN_NETWORK = "/mean_network"  # end of the a figure's name


def variants(name: str, attack: Attack, module: RobustClassifier, eot_samples: int) -> dict[str, Attack]:
    """What is run of an attack, by the figure's name.

    For networks with noise, outside ``fit``, also what tells whether the noise only hides the gradient:
    ``<name>/eot``, each gradient the mean over so many passes, and ``<name>/mean_network``, gradients without noise.
    Attacks that have no setting ``eot_samples``, or one above 1, take care of the noise themselves. Without noise
    all passes are the same, and one is enough.
    """
    own = getattr(attack, "eot_samples", None)
    if not module.stochastic:
        return {name: attack if own in (None, 1) else _with_expectation(attack, 1)}
    if own != 1 or module.trainer.state.fn == "fit":
        return {name: attack}
    found = {name: attack, f"{name}/eot": _with_expectation(attack, eot_samples)}
    return found | ({f"{name}{MEAN_NETWORK}": _on_mean_network(attack)} if noise_sources(module) else {})


def verdicts(network: nn.Module, x: Tensor, y: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    """Whether each of so many passes, with fresh noise, is right, bool (P, B), and the majority of them, bool (B,).

    The majority is the class that most passes give, the lower one of equals.
    """
    classes = torch.stack([network(x).argmax(1) for _ in range(passes)])
    return classes == y, classes.mode(0).values == y


def _with_expectation(attack: Any, eot_samples: int) -> Attack:
    averaging: Any = copy.copy(attack)
    averaging.eot_samples = eot_samples
    return averaging  # type: ignore[no-any-return]


def _on_mean_network(attack: Attack) -> Attack:
    def mean_network(network: nn.Module, threat_model: ThreatModel, x: Tensor, y: Tensor) -> Any:
        with without_noise(network):
            return attack(network, threat_model, x, y)

    return mean_network
