"""Checks of images, labels and logits where they enter attacks, bounds and evaluations."""

from __future__ import annotations

import torch
from torch import Tensor

from robust.errors import NonFiniteLogitsError, SettingError, require

PRECISE = (torch.float32, torch.float64)


def check_images(x: Tensor, name: str = "images") -> None:
    """Check that ``x`` holds images: finite floats in [0, 1] of shape (B, C, H, W), B at least 1.

    Args:
        x: what is checked, in float32 or float64.
        name: what the error calls it.

    Raises:
        SettingError: naming the range, shape or type that was found, the expected one and the remedy.
    """
    require(x.dtype in PRECISE, name, str(x.dtype), "give float32 images in [0, 1] (uint8 images over 255)")
    require(x.dim() == 4 and x.numel() > 0, name, tuple(x.shape), "give at least one image, shape (B, C, H, W)")
    check_range(x, name)


def check_range(x: Tensor, name: str = "images") -> None:
    """Check that all values of ``x``, of any shape and floating-point type, are finite and in [0, 1].

    Raises:
        SettingError: naming the range that was found, the expected one and the remedy.
    """
    low, high = (float(end) for end in torch.aminmax(x.detach()))
    if not (low >= 0.0 and high <= 1.0):  # also where an end is not a number
        remedy = "expected values in [0, 1]; divide uint8 by 255, and normalise inside the network (robust.networks"
        raise SettingError(name, f"values from {low:.4g} to {high:.4g}", f"{remedy}.Normalize as its first layer)")


def check_labels(y: Tensor, batch: int, num_classes: int, name: str = "labels") -> None:
    """Check that ``y`` holds one label in [0, num_classes) for each of ``batch`` examples.

    Args:
        y: what is checked, (B,) of an integer type.
        batch: number of examples.
        num_classes: of the network's logits; at least 2.
        name: what the error calls the labels.

    Raises:
        SettingError: naming what was found and the remedy.
    """
    require(num_classes >= 2, "network", f"{num_classes} logits", "give a classifier of at least 2 classes")
    kind = not (y.dtype.is_floating_point or y.dtype is torch.bool or y.dtype.is_complex)
    require(kind, name, str(y.dtype), "give integer class indices")
    require(y.shape == (batch,), name, tuple(y.shape), f"give one label per example, shape ({batch},)")
    low, high = (int(end) for end in torch.aminmax(y))
    remedy = f"give class indices in [0, {num_classes}), as many as the network has logits"
    require(low >= 0 and high < num_classes, name, f"labels from {low} to {high}", remedy)


def check_logits(logits: Tensor, batch: int) -> None:
    """Check that ``logits`` are finite and of shape (batch, K), K at least 2.

    Raises:
        SettingError: if their shape is another.
        NonFiniteLogitsError: if one is NaN or infinite.
    """
    shape = logits.dim() == 2 and len(logits) == batch and logits.shape[1] >= 2
    require(shape, "network", f"output of shape {tuple(logits.shape)}", f"give logits of shape ({batch}, K), K >= 2")
    bad = int((~logits.detach().isfinite()).any(1).sum())
    if bad:
        raise NonFiniteLogitsError(
            f"network: got logits that are NaN or infinite for {bad} of {batch} examples; "
            "its weights have diverged or the images are broken: no figure of it means anything"
        )
