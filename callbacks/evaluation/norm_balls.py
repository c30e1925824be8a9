"""The norm ball in which an evaluation attacks."""

from __future__ import annotations

from torch import Tensor

from lightning_modules.base import RobustClassifier
from robust.errors import require
from robust.threat_models import L1Ball, L2Ball, LinfBall, Norm, ball

Ball = LinfBall | L2Ball | L1Ball


def norm_ball(setting: str, norm: Norm, epsilon: float | None, module: RobustClassifier, x: Tensor) -> Ball:
    """The ball of a norm and a radius, by default that of the module's ball of this norm around ``x`` (B, C, H, W).

    Raises:
        SettingError: if no radius is given and the module has no ball of that norm.
    """
    if epsilon is not None:
        return ball(norm, epsilon)
    models = module.threat_models(x, module.epsilon)
    radii = [model.epsilon for model in models.values() if model.norm == norm and model.epsilon is not None]
    remedy = f"give a radius: none of the model's threat models, {', '.join(models)}, is a {norm} ball"
    require(len(radii) > 0, setting, None, remedy)
    return ball(norm, radii[0])
