"""Interface of every verifier: certified bounds of a network's margins and loss over a per-pixel box or a ball."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from robust.checks import PRECISE, check_precision
from robust.errors import require
from robust.threat_models import Box, CutBall, Region

Regions = TypeVar("Regions", Box, CutBall, Region)
TrainingPrecision = Literal["float32", "tf32", "bfloat16"]


class Verifier(Protocol):
    """Certified bounds of a classifier over a box. Differentiable to the weights and to the box."""

    def margins(self, network: nn.Module, box: Region, y: Tensor) -> Tensor:
        """Lower bounds of ``z_y - z_k`` for every class ``k != y`` over the box.

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K).
            box: per-pixel interval, each side (B, C, H, W); or a ball, for a verifier that bounds balls.
            y: labels (B,).

        Returns:
            Shape (B, K-1), classes in ascending order without ``y``. An example is certified where all are > 0.
        """

    def cross_entropy(self, network: nn.Module, box: Region, y: Tensor, crown_weight: float = 1.0) -> Tensor:
        """Upper bound of the cross-entropy over the box by loss fusion, shape (B,).

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K).
            box: per-pixel interval or ball, as for ``margins``.
            y: labels (B,).
            crown_weight: weight of the CROWN-IBP bound of sum_k exp(z_k - z_y), the rest is the IBP bound;
                1 at the start of the epsilon ramp, 0 at its end.
        """


def in_bound_precision(network: nn.Module, box: Regions) -> Regions:
    """The box, or the ball, in the precision that bounds need: float32, or float64 where the network is float64.

    Raises:
        SettingError: if the network's weights or the box are in half precision, whose rounding makes bounds unsound,
            or the box has another shape, or a ball has a radius below 0 or another norm than l2 and l1.
    """
    remedy = "give the box or ball around the images: threat_model.interval(x) or threat_model.region(x)"
    require(isinstance(box, Box | CutBall), "box", type(box).__name__, remedy)
    lower, upper = box.lower, box.upper
    for side in (lower, upper):
        require(side.dtype in PRECISE, "box", str(side.dtype), "give float32 images in [0, 1]")
    shapes = (tuple(lower.shape), tuple(upper.shape))
    whole = lower.shape == upper.shape and lower.dim() == 4 and lower.numel() > 0
    require(whole, "box", shapes, "give two sides of shape (B, C, H, W), of at least one image")
    if isinstance(box, CutBall):
        _check_ball(box)
    dtype = bound_precision(network)
    return box.map(lambda side: side.to(dtype))


def _check_ball(ball: CutBall) -> None:
    shapes = (tuple(ball.center.shape), tuple(ball.epsilon.shape))
    fits = shapes == (tuple(ball.lower.shape), (len(ball.lower),))
    require(fits, "ball", shapes, "give centers of the sides' shape (B, C, H, W), and radii of shape (B,)")
    smallest = float(ball.epsilon.detach().amin())
    require(smallest >= 0, "ball", f"a radius of {smallest:.4g}", "give radii that are 0 or above")
    remedy = "its dual norms are those of l2 and l1; for linf give the box LinfBall(epsilon).interval(x)"
    require(ball.norm in ("l2", "l1"), "ball.norm", ball.norm, remedy)


def check_crown_weight(weight: float) -> None:
    """Check the weight of CROWN-IBP's bound in the fused loss.

    Raises:
        SettingError: if it is not in [0, 1].
    """
    require(0 <= weight <= 1, "crown_weight", weight, "give a number from 0 (IBP alone) to 1 (CROWN-IBP alone)")


def bound_precision(network: nn.Module) -> torch.dtype:
    """float32, or float64 where the network is float64.

    >>> bound_precision(nn.Linear(1, 1)), bound_precision(nn.Linear(1, 1).double())
    (torch.float32, torch.float64)

    Raises:
        SettingError: if the network's weights are in half precision, whose rounding makes bounds unsound.
    """
    check_precision(network, "bounds")
    return next((p.dtype for p in network.parameters()), torch.float32)


def check_box(center: Tensor, radius: Tensor) -> None:
    """Check that a box ``center +- radius`` lies around images: midpoints in [0, 1], budgets not negative.

    Raises:
        SettingError: naming what was found and the remedy.
    """
    thinnest, widest = (float(end) for end in torch.aminmax(radius.detach()))
    remedy = "give budgets that are 0 or above, as threat_model.interval does"
    require(thinnest >= 0, "box", f"radii from {thinnest:.4g} to {widest:.4g}", remedy)  # not so for NaN either
    low, high = (float(end) for end in torch.aminmax(center.detach()))
    slack = 1e-5 * (1 + widest)  # a wide box that is not cut has a midpoint near its image
    remedy = "expected boxes around images in [0, 1]; normalise inside the network (robust.networks.Normalize)"
    require(low >= -slack and high <= 1 + slack, "box", f"midpoints from {low:.4g} to {high:.4g}", remedy)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32 and no bf16 products: their rounding is larger than the margins that are certified."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def has_fast_bfloat16() -> bool:
    """Whether oneDNN has convolutions in bf16 for this processor (AVX-512 or newer, Arm's bf16), fast or emulated."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # absent from builds without oneDNN
    return supported is not None and bool(supported())


@contextmanager
def in_training_precision(precision: TrainingPrecision, device: torch.device) -> Iterator[None]:
    """Products in the precision of a training loss, which is no certificate: a GPU's TF32, or bf16.

    Warns:
        UserWarning: for bf16 on a processor for which oneDNN has no convolutions in bf16.
    """
    if precision == "bfloat16" and device.type == "cpu" and not has_fast_bfloat16():
        warnings.warn(
            "training_precision: bfloat16 is many times slower than float32 on this processor, for which oneDNN has no "
            "convolutions in it; leave the setting out",
            stacklevel=4,  # behind the context manager and the verifier
        )
    with full_precision(device):
        if precision == "tf32":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            yield


def other_classes(y: Tensor, num_classes: int) -> Tensor:
    """For labels (B,), the classes other than the label in ascending order, shape (B, K-1).

    >>> other_classes(torch.tensor([1, 0]), num_classes=3)
    tensor([[0, 2],
            [1, 2]])
    """
    index = torch.arange(num_classes - 1, device=y.device).expand(len(y), -1)
    return index + (index >= y[:, None]).long()
