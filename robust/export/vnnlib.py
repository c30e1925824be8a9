"""Robustness properties in VNN-LIB 1.0, for the tools of the competition VNN-COMP.

A property describes the inputs and outputs of a counterexample: tools answer ``unsat`` if the image is robust, ``sat``
with a counterexample if it is not. Source: the VNN-LIB standard, https://www.vnnlib.org, and the rules of VNN-COMP for
``instances.csv``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from robust.checks import check_images
from robust.errors import require
from robust.threat_models import Box


class Property(NamedTuple):
    """A row of ``instances.csv``: paths relative to it, and the time limit in seconds."""

    network: str
    path: str
    timeout: int


def write_property(path: str | Path, box: Box, label: int, num_classes: int, comment: str = "") -> None:
    """Write the property that every image in a box has the class ``label``.

    ``X_i`` is the i-th value of the image in the order of the network's input (channel, row, column), ``Y_k`` the logit
    of class k. Bounds are decimals from which a float32 reads back exactly. Ties with another class count as
    counterexamples.

    Args:
        path: path of the file.
        box: lower and upper images of one example, (1, C, H, W) in [0, 1].
        label: class of the example.
        num_classes: number of logits, K.
        comment: lines of text for the head of the file.

    Raises:
        SettingError: if the box holds several examples, is empty or not in [0, 1], or there is no such class.
    """
    lower, upper = box
    for name, side in (("lower", lower), ("upper", upper)):
        check_images(side, name)
    require(lower.shape == upper.shape and len(lower) == 1, "box", tuple(lower.shape), "give a box of one image")
    require(bool((lower <= upper).all()), "box", "lower above upper", "give a box with lower <= upper")
    require(0 <= label < num_classes, "label", label, f"give a class in [0, {num_classes})")
    bounds = [
        (_decimal(low), _decimal(high)) for low, high in zip(_flat(lower, -np.inf), _flat(upper, np.inf), strict=True)
    ]
    others = [k for k in range(num_classes) if k != label]
    lines = [
        *(f"; {line}" for line in comment.splitlines()),
        *(f"(declare-const X_{i} Real)" for i in range(len(bounds))),
        *(f"(declare-const Y_{k} Real)" for k in range(num_classes)),
        *(f"(assert (>= X_{i} {low}))\n(assert (<= X_{i} {high}))" for i, (low, high) in enumerate(bounds)),
        "(assert (or",
        *(f"    (and (>= Y_{k} Y_{label}))" for k in others),
        "))",
    ]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_instances(path: str | Path, properties: Iterable[Property]) -> None:
    """Write ``instances.csv``: a row (network, property, timeout in seconds) for each property."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(properties)


def _flat(ends: Tensor, outwards: float) -> NDArray[np.float32]:
    """The ends in float32; those of float64 are rounded outwards, so that the written box contains the given one."""
    exact = ends.detach().cpu().flatten().double().numpy()
    single = exact.astype(np.float32)
    inside = single.astype(np.float64) > exact if outwards < 0 else single.astype(np.float64) < exact
    return np.where(inside, np.nextafter(single, np.float32(outwards)), single)


def _decimal(value: np.float32) -> str:
    """The shortest decimal that reads back as the same float32, without an exponent, which some tools do not read."""
    return np.format_float_positional(value, unique=True, trim="0")
