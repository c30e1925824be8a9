"""Attack and judge a classifier: checked attacks, repeated judgement, expectation over a network's noise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robust.errors import InvalidAttackError
from robust.networks import noise_sources, without_noise
from robust.threat_models import ThreatModel

# It returns images. With that type, jsonargparse would take a class_path for that of a subclass of Tensor.
Attack = Callable[[nn.Module, ThreatModel, Tensor, Tensor], Any]
NO_GRAPH = "does not require grad"  # in torch's error where a graph is missing
MEAN_NETWORK = "_mean_network"  # end of an attack's name


def checked_attack(
    name: str, attack: Attack, network: nn.Module, threat_model: ThreatModel, x: Tensor, y: Tensor
) -> Tensor:
    """The attack's images (B, C, H, W), checked to be in the threat model and in [0, 1].

    Args:
        name: name of the attack in the error.
        attack: called as ``attack(network, threat_model, x, y)``, returns images.
        network: classifier, (B, C, H, W) -> logits (B, K).
        threat_model: threat model around ``x``.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).

    Raises:
        InvalidAttackError: if the attack gives no images, or one that is outside.

    >>> from robust.threat_models import LinfBall
    >>> def brighten(network, threat_model, x, y):
    ...     return x + 0.1
    >>> x, y = torch.zeros(2, 1, 1, 1), torch.tensor([0, 1])
    >>> checked_attack("brighten", brighten, nn.Flatten(), LinfBall(0.2), x, y).flatten()
    tensor([0.1000, 0.1000])
    >>> checked_attack("brighten", brighten, nn.Flatten(), LinfBall(0.05), x, y)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    robust.errors.InvalidAttackError: invalid attack brighten: brighten gave 2 images out of 2 outside...
    """
    invalid = f"invalid attack {name}: {_name(attack)}"
    try:
        x_adv: Any = attack(network, threat_model, x, y)
    except RuntimeError as error:
        if NO_GRAPH not in str(error):
            raise
        remedy = "evaluations run without gradients; compute the loss inside `with torch.enable_grad():`"
        raise InvalidAttackError(f"{invalid} asks for a gradient of a loss that has none; {remedy}") from error
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        what = f"images of shape {tuple(x_adv.shape)}" if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise InvalidAttackError(f"{invalid} gave {what}; return images of shape {tuple(x.shape)}")
    if not bool((inside := threat_model.contains(x_adv, x)).all()):
        raise InvalidAttackError(
            f"{invalid} gave {int((~inside).sum())} images out of {len(x)} outside "
            f"{type(threat_model).__name__} or [0, 1]; project what it returns by threat_model.project"
        )
    return x_adv


def judge_repeatedly(network: nn.Module, x: Tensor, y: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """Whether each of several passes, with fresh noise, is correct, and whether their majority is.

    The majority is the class that most passes give, the lower one of equals. Source: Learn2Perturb's evaluation.

    Args:
        network: classifier, (B, C, H, W) -> logits (B, K).
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        num_samples: number of passes, S.

    Returns:
        Verdicts of the passes, bool (S, B), and of their majority, bool (B,).

    >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]]).view(2, 2, 1, 1)
    >>> judge_repeatedly(nn.Flatten(), logits, torch.tensor([0, 0]), num_samples=2)
    (tensor([[ True, False],
            [ True, False]]), tensor([ True, False]))
    """
    classes = torch.stack([network(x).argmax(1) for _ in range(num_samples)])
    return classes == y, classes.mode(0).values == y


def under_the_strongest(correct: Tensor) -> Tensor:
    """Number of correct passes of each example, int64 (B,), under the strongest of several attacks.

    With noise each pass is judged under the attack that broke most of the example's *other* passes. The lowest of the
    attacks' own numbers would be too low, since it takes chance for strength: of 10 passes, by 2 points and more.

    Args:
        correct: whether each pass of each example is correct under each attack, bool (A, B, S).

    >>> under_the_strongest(torch.tensor([[[True], [True]], [[False], [True]]]))  # one pass
    tensor([0, 1])
    >>> under_the_strongest(torch.tensor([[[True, False, False]], [[True, True, False]]]))  # the first attack, thrice
    tensor([1])
    """
    if correct.shape[2] == 1:
        return correct.all(0).sum(1)
    others = correct.sum(2, keepdim=True) - correct.long()
    return correct.gather(0, others.argmin(0, keepdim=True)).squeeze(0).sum(1)


def attack_variants(
    name: str, attack: Attack, network: nn.Module, *, stochastic: bool, num_samples: int
) -> dict[str, Attack]:
    """The attacks to run in place of one, by name, so that noise does not only hide the gradient.

    For stochastic networks these are also ``<name>_eot``, whose gradients are means over passes, and
    ``<name>_mean_network``, whose gradients are those of the network without noise. Attacks that have no setting
    ``num_samples``, or one above 1, take care of the noise themselves. Without noise all passes are the same, and one
    is enough. Source: Learn2Perturb's evaluation.

    Args:
        name: name of the attack.
        attack: called as ``attack(network, threat_model, x, y)``, returns images.
        network: classifier, (B, C, H, W) -> logits (B, K).
        stochastic: whether two passes of the same image differ.
        num_samples: number of passes over which gradients are averaged.

    >>> from robust.attacks import PGD
    >>> variants = attack_variants("pgd", PGD(5), nn.Flatten(), stochastic=True, num_samples=30)
    >>> {name: attack.num_samples for name, attack in variants.items()}
    {'pgd': 1, 'pgd_eot': 30}
    """
    own = getattr(attack, "num_samples", None)
    if not stochastic:
        return {name: attack if own in (None, 1) else with_expectation(attack, 1)}
    if own != 1:
        return {name: attack}
    variants = {name: attack, f"{name}_eot": with_expectation(attack, num_samples)}
    return variants | ({f"{name}{MEAN_NETWORK}": _on_mean_network(attack)} if noise_sources(network) else {})


def with_expectation(attack: Any, num_samples: int) -> Attack:
    """The attack with gradients and verdicts averaged over ``num_samples`` passes, if it has that setting."""
    if not hasattr(attack, "num_samples"):
        return attack  # type: ignore[no-any-return]
    averaging: Any = copy.copy(attack)
    averaging.num_samples = num_samples
    return averaging  # type: ignore[no-any-return]


class _MeanNetwork(nn.Module):
    """A network whose noise is off for now. It is attacked to the end, since it will be judged with noise."""

    stochastic = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K)."""
        logits: Tensor = self.network(x)
        return logits


def _on_mean_network(attack: Attack) -> Attack:
    def mean_network(network: nn.Module, threat_model: ThreatModel, x: Tensor, y: Tensor) -> Any:
        with without_noise(network):
            return attack(_MeanNetwork(network), threat_model, x, y)

    return mean_network


def _name(attack: Attack) -> str:
    attack = getattr(attack, "func", attack)  # of a partial
    return getattr(attack, "__name__", type(attack).__name__)
