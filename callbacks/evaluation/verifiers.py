"""Check that a verifier can bound the network."""

from __future__ import annotations

from torch import Tensor

from lightning_modules.base import RobustClassifier
from robust.bounds import LirpaVerifier, Verifier, without_bound
from robust.bounds.verdicts import RangeVerifier, double_copy
from robust.errors import SettingError, require
from robust.threat_models import Region


def require_volume(name: str, epsilons: object, module: RobustClassifier) -> None:
    """Refuse the model's epsilon as the size of budgets if it is the radius of a ball of another norm than linf.

    Raises:
        SettingError: if ``epsilons``, sizes of budgets per pixel, are not given then.
    """
    norm = getattr(module, "norm", "linf")
    remedy = f"the model's epsilon {module.epsilon:g} is a radius in {norm}; give sizes of budgets in (0, 1]"
    require(epsilons is not None or norm == "linf", f"{name}.epsilons", epsilons, remedy)


def try_verifier(
    setting: str, verifier: Verifier, module: RobustClassifier, box: Region, y: Tensor, rounding_safe: bool = True
) -> None:
    """Bound the module's classifier over a box or a ball around one image.

    If ``rounding_safe``, the network must also have a copy in float64, which decides margins near 0.

    Raises:
        SettingError: if it cannot be bounded, or the module's predictions are not those of its classifier alone; the
            message names ``setting``.
    """
    module.require_own_forward(setting)
    try:
        verifier.margins(module.classifier, box, y)
        if rounding_safe and not isinstance(verifier, RangeVerifier):
            double_copy(module.classifier, box)
    except SettingError as error:
        unnamed = isinstance(verifier, LirpaVerifier) and "network layer" not in str(error)
        _, channels, height, width = box.lower.shape
        reason = without_bound(module.classifier, (channels, height, width)) if unnamed else None
        other = "" if reason is None else f", and {reason}"
        raise type(error)(setting, type(verifier).__name__, f"{error}{other}") from error
