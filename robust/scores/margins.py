"""R2 of image classifiers: the distance to the decision boundary, by attacks (general robustness framework, Sec. 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robust.attacks import BoundaryAttack, to_boundary
from robust.checks import check_images, check_logits, check_precision
from robust.errors import InvalidAttackError
from robust.modes import attack_mode
from robust.progress import tracked
from robust.threat_models import diameter


class Margins(NamedTuple):
    """The attacks' results on B images; attacks are numbered in their order."""

    margin: Tensor  # (B,) l2 distance to the nearest image of another class; the cube's diameter where all fail
    attack: Tensor  # (B,) which attack gave it, the first of equal ones; -1 for none
    distances: Tensor  # (B, A) of each attack's point on the boundary; infinite where it failed
    nearest: Tensor  # (B, C, H, W) these images; where every attack fails, the image itself


def nearest_boundary(
    network: nn.Module, attacks: Mapping[str, BoundaryAttack], x: Tensor, halvings: int = 25
) -> Margins:
    """The nearest image of another class that any of the attacks gives, each moved back to the boundary.

    The class meant is the predicted one, also where the prediction is wrong. It is an upper bound of the true margin:
    stronger attacks only lower it. An image that every attack fails on has the largest margin that there is.

    >>> from robust.attacks import FGSMGrid, LinearizedBoundary
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))  # logits are the pixels
    >>> _ = network[1].load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    >>> x = torch.tensor([0.75, 0.25]).view(1, 1, 1, 2)
    >>> margins = nearest_boundary(network, {"grid": FGSMGrid(), "linearized": LinearizedBoundary()}, x)
    >>> round(margins.margin.item(), 2)  # (3/4 - 1/4) / sqrt(2)
    0.35

    Args:
        network: classifier, (B, C, H, W) -> logits (B, K), taken in evaluation mode.
        attacks: attacks by name.
        x: images (B, C, H, W) in [0, 1].
        halvings: number of bisections of the segment from the image to the attack's point.

    Raises:
        SettingError: if images, logits or weights are not as said.
        NonFiniteLogitsError: if logits are NaN or infinite.
        InvalidAttackError: if an attack's point does not change the class or leaves [0, 1]; the margin would be wrong.
    """
    check_precision(network, "scores")
    check_images(x)
    with attack_mode(network, "eval"):
        x = x.clone()
        y = _classes(network, x)
        points, distances = [], []
        for name, attack in tracked(list(attacks.items())):
            point, distance = to_boundary(network, x, attack(network, x, y), y, halvings)
            valid = (distance.isinf() | (_classes(network, point) != y)) & ((point >= 0) & (point <= 1)).flatten(1).all(
                1
            )
            _check_valid(name, valid)
            points.append(point)
            distances.append(distance)
        table = torch.stack(distances, 1)
        nearest, which = table.min(1)
        failed = nearest.isinf()
        chosen = torch.stack(points, 1)[torch.arange(len(x), device=x.device), which]
        return Margins(
            torch.where(failed, diameter(tuple(x.shape[1:])), nearest),
            torch.where(failed, -1, which),
            table,
            torch.where(failed.view(-1, *[1] * (x.dim() - 1)), x, chosen),
        )


def _check_valid(name: str, valid: Tensor) -> None:
    if not valid.all():
        invalid = f"{int((~valid).sum())} of {len(valid)} images keep their class or leave [0, 1]"
        raise InvalidAttackError(f"invalid attack {name}: {invalid}")


def _classes(network: nn.Module, x: Tensor) -> Tensor:
    logits = network(x)
    check_logits(logits, len(x))
    classes: Tensor = logits.argmax(1)
    return classes


def margin_curve(margins: Tensor, epsilons: Tensor) -> Tensor:
    """Fraction of images (E,) whose margin (N,) is above each radius (E,): eq. 6 by samples.

    >>> margin_curve(torch.tensor([1.0, 2.0, 4.0, 4.0]), torch.tensor([0.0, 1.0, 3.0]))
    tensor([1.0000, 0.7500, 0.5000], dtype=torch.float64)
    """
    return (margins[None] > epsilons[:, None]).double().mean(1)


def area_under_curve(margins: Tensor) -> Tensor:
    """Integral of the margin curve over all radii, a scalar: piece by piece of the step function.

    >>> area_under_curve(torch.tensor([1.0, 2.0, 4.0, 4.0]))  # the mean margin
    tensor(2.7500, dtype=torch.float64)
    """
    ends = margins.double().sort().values
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return ((ends - starts) * margin_curve(ends, starts)).sum()
