"""Checks of images, labels, budgets, networks and logits where they enter attacks, bounds and evaluations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from robust.errors import NonFiniteLogitsError, SettingError, require

PRECISE = (torch.float32, torch.float64)
NEAR = 1e-3  # beyond [0, 1], where rounding is likelier than other units
ONE_BYTE = 1.001 / 255  # the largest value of images that were divided by 255 twice, and rounding
_NORMALIZE = "expected values in [0, 1]; divide uint8 by 255, and normalise inside the network"
_checked: ContextVar[bool] = ContextVar("checked", default=False)


@contextmanager
def checked_before() -> Iterator[None]:
    """Images and budgets inside are those of a caller who has checked them: an attack does so once, not at each step.

    Threat models do not check again; a check of a tensor on an accelerator would wait for it.
    """
    token = _checked.set(True)
    try:
        yield
    finally:
        _checked.reset(token)


def check_images(x: Tensor, name: str = "images") -> None:
    """Check that ``x`` holds images: finite floats in [0, 1] of shape (B, C, H, W), B at least 1.

    >>> check_images(torch.zeros(1, 28, 28))
    Traceback (most recent call last):
    robust.errors.SettingError: images: got (1, 28, 28); give at least one image, shape (B, C, H, W)

    Args:
        x: tensor to check, in float32 or float64.
        name: name of the tensor in the error.

    Raises:
        SettingError: naming the range, shape or type that was found, the expected one and the remedy.
    """
    if _checked.get():
        return
    require(isinstance(x, Tensor), name, type(x).__name__, "give a tensor")
    require(x.dtype in PRECISE, name, str(x.dtype), "give float32 images in [0, 1] (uint8 images over 255)")
    require(x.dim() == 4 and x.numel() > 0, name, tuple(x.shape), "give at least one image, shape (B, C, H, W)")
    check_range(x, name)


def check_range(x: Tensor, name: str = "images") -> None:
    """Check that all values of ``x``, of any shape and floating-point type, are finite and in [0, 1].

    Warns if they are in [0, 1/255].

    Raises:
        SettingError: naming the range that was found, the expected one and the remedy.
    """
    low, high = value_range(x)
    if not (low >= 0.0 and high <= 1.0):  # also where an end is not a number
        remedy = f"{_NORMALIZE} (robust.networks.Normalize as its first layer)"
        if low >= -NEAR and high <= 1 + NEAR:
            raise SettingError(
                name, f"values from {low:.9g} to {high:.9g}", "rounding took them out of [0, 1]; call clamp(0, 1)"
            )
        raise SettingError(name, f"values from {low:.4g} to {high:.4g}", remedy)
    if 0 < high <= ONE_BYTE:
        warnings.warn("images: no value exceeds 1/255; were they divided by 255 twice?", stacklevel=2)


def check_points(x_adv: Tensor, x: Tensor, name: str = "x_adv") -> None:
    """Check images ``x`` as :func:`check_images` does, and that ``x_adv`` has their shape and finite values.

    Raises:
        SettingError: naming what was found and the remedy.
    """
    if _checked.get():
        return
    check_images(x)
    require(x_adv.shape == x.shape, name, tuple(x_adv.shape), f"give the images' shape, {tuple(x.shape)}")
    low, high = value_range(x_adv)
    finite = low > -torch.inf and high < torch.inf
    require(finite, name, f"values from {low:.4g} to {high:.4g}", "give finite values: a step or a gradient diverged")


def check_budgets(budgets: Tensor, name: str = "budgets") -> None:
    """Check that per-pixel budgets are finite floats of at least 0.

    Raises:
        SettingError: naming the range that was found and the remedy.
    """
    if _checked.get():
        return
    require(isinstance(budgets, Tensor), name, type(budgets).__name__, "give a tensor that broadcasts to the images")
    require(budgets.is_floating_point(), name, str(budgets.dtype), "give floats, in units of [0, 1]")
    require(budgets.numel() > 0, name, tuple(budgets.shape), "give at least one budget")
    low, high = value_range(budgets)
    remedy = "give finite budgets of at least 0, in units of [0, 1]"
    require(low >= 0.0 and high < torch.inf, name, f"values from {low:.4g} to {high:.4g}", remedy)


def check_precision(network: nn.Module, what: str = "attacks") -> None:
    """Check that the network's weights are float32 or float64: half precision loses gradients and near ties.

    Args:
        network: network that is attacked or scored; weights in float32 under autocast are allowed.
        what: user of the network, in the plural, as the subject of the error's remedy.

    Raises:
        SettingError: naming the type that was found and the remedy.
    """
    for weight in network.parameters():
        if weight.is_floating_point() and weight.dtype not in PRECISE:
            remedy = f"{what} need float32 weights: call network.float(), or train in mixed instead of true precision"
            raise SettingError("network", f"weights in {weight.dtype}", remedy)


def check_label_shape(y: Tensor, batch: int, name: str = "labels") -> None:
    """Check that ``y`` holds one integer for each of ``batch`` examples; its values are left to :func:`check_labels`.

    Raises:
        SettingError: naming what was found and the remedy.
    """
    require(isinstance(y, Tensor), name, type(y).__name__, "give a tensor")
    kind = not (y.dtype.is_floating_point or y.dtype is torch.bool or y.dtype.is_complex)
    require(kind, name, str(y.dtype), "give integer class indices")
    require(y.shape == (batch,), name, tuple(y.shape), f"give one label per example, shape ({batch},)")


def as_classes(y: Tensor) -> Tensor:
    """Labels of any integer type as int64; others as they are, for :func:`check_labels` to refuse.

    >>> as_classes(torch.tensor([3], dtype=torch.uint8))
    tensor([3])
    """
    require(isinstance(y, Tensor), "labels", type(y).__name__, "give a tensor of class indices, (B,)")
    whole = not (y.dtype.is_floating_point or y.dtype is torch.bool or y.dtype.is_complex)
    return y.long() if whole else y


def check_labels(y: Tensor, batch: int, num_classes: int, name: str = "labels") -> None:
    """Check that ``y`` holds one label in [0, num_classes) for each of ``batch`` examples.

    >>> check_labels(torch.tensor([9]), batch=2, num_classes=10)
    Traceback (most recent call last):
    robust.errors.SettingError: labels: got (1,); give one label per example, shape (2,)

    Args:
        y: labels to check, (B,) of an integer type.
        batch: number of examples.
        num_classes: number of the network's logits; at least 2.
        name: name of the labels in the error.

    Raises:
        SettingError: naming what was found and the remedy.
    """
    require(num_classes >= 2, "network", f"{num_classes} logits", "give a classifier of at least 2 classes")
    check_label_shape(y, batch, name)
    low, high = (int(end) for end in value_range(y))
    remedy = f"give class indices in [0, {num_classes}), as many as the network has logits"
    require(low >= 0 and high < num_classes, name, f"labels from {low} to {high}", remedy)


def check_logits(logits: Tensor, batch: int) -> None:
    """Check that ``logits`` are finite and of shape (batch, K), K at least 2.

    Raises:
        SettingError: if their shape is another.
        NonFiniteLogitsError: if one is NaN or infinite.
    """
    kind = type(logits).__name__
    require(isinstance(logits, Tensor), "network", f"a {kind} as output", "give a network that returns logits (B, K)")
    shape = logits.dim() == 2 and len(logits) == batch and logits.shape[1] >= 2
    require(shape, "network", f"output of shape {tuple(logits.shape)}", f"give logits of shape ({batch}, K), K >= 2")
    bad = int((~logits.detach().isfinite()).any(1).sum())
    if bad:
        raise NonFiniteLogitsError(
            f"network: got logits that are NaN or infinite for {bad} of {batch} examples; "
            "its weights have diverged or the images are broken: no metric of it means anything"
        )


def value_range(x: Tensor) -> tuple[float, float]:
    """Least and largest value, in one wait for the device; both are NaN where a value is."""
    x = x.detach()
    # two passes: on the CPU each is vectorised, which torch.aminmax is not
    low, high = torch.stack((x.amin(), x.amax())).tolist()
    return low, high
