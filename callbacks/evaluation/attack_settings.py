"""Checks of the attacks and radii that an evaluation is given."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from lightning_modules.base import RobustClassifier
from robust.errors import SettingError, require
from robust.threat_models import L1Ball, L2Ball, LinfBall, Norm, ball

_OTHERS = "give one such as robust.attacks.PGD; those that search the nearest boundary are RobustnessScore's"
CALL = (("network", "threat_model", "x", "y"), _OTHERS)  # how an attack in a threat model is called
Ball = LinfBall | L2Ball | L1Ball


def named_ball(setting: str, norm: Norm, radius: float) -> Ball:
    """The ball of a norm and a radius.

    Raises:
        SettingError: by the name of the radius' setting, if there is no such ball.
    """
    try:
        return ball(norm, radius)
    except SettingError as error:
        raise SettingError(setting, radius, str(error).partition("; ")[2]) from None


def norm_ball(setting: str, norm: Norm, epsilon: float | None, module: RobustClassifier, x: Tensor) -> Ball:
    """The ball of a norm and a radius, by default that of the module's ball of this norm around ``x`` (B, C, H, W).

    Raises:
        SettingError: if no radius is given and the module has no ball of that norm.
    """
    if epsilon is not None:
        return named_ball(setting, norm, epsilon)
    models = module.threat_models(x, module.epsilon)
    radii = [model.epsilon for model in models.values() if model.norm == norm and model.epsilon is not None]
    remedy = f"give a radius: none of the model's threat models, {', '.join(models)}, is a {norm} ball"
    require(len(radii) > 0, setting, None, remedy)
    return ball(norm, radii[0])


def check_names(setting: str, names: Iterable[str]) -> None:
    """Check names that become parts of metrics.

    Raises:
        SettingError: at a name that is empty or has a slash.
    """
    for name in names:
        require(name.strip() != "" and "/" not in name, setting, name, "give it a name, without slashes")


def check_call(setting: str, attack: Any, arguments: tuple[str, ...], others: str) -> None:
    """Check that an attack can be called with these arguments.

    Args:
        setting: name of the attack's setting.
        attack: the attack.
        arguments: names of the arguments, by position.
        others: remedy for attacks of another kind.

    Raises:
        SettingError: if it takes others.
    """
    try:
        inspect.signature(attack).bind(*arguments)
    except TypeError:
        name = getattr(attack, "__name__", type(attack).__name__)
        remedy = f"it cannot be called as attack({', '.join(arguments)}); {others}"
        raise SettingError(setting, name, remedy) from None
    except ValueError:  # a function of a compiled module, without a signature
        return
