"""Shared parts of all attacks: checks of a network's input and output, gradients to the input, verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robust.checks import check_images, check_label_shape, check_labels, check_logits, check_precision, checked_before
from robust.convolution import fast_image_gradients
from robust.errors import GradientError, NonFiniteLogitsError, SettingError, ZeroGradientError, require
from robust.losses import Loss, cross_entropy, dlr, margin
from robust.modes import Mode, attack_mode
from robust.networks import noise_sources
from robust.passes import uncounted
from robust.random import part, rewound

BISECTIONS = 20  # steps to where two flat regions of a network meet
FEWEST = 8  # examples for which a loss that saturates is no matter of chance
LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


@contextmanager
def attacking(
    network: nn.Module, mode: Mode, x: Tensor, y: Tensor, num_samples: int = 1
) -> Iterator[tuple[Checked, Tensor, Tensor]]:
    """:func:`attack_mode`, with checks of what enters: the network that checks itself, and copies of x and y.

    Args:
        network: classifier, (B, C, H, W) -> logits (B, K).
        mode: see :func:`robust.modes.in_mode`.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,) of any integer type.
        num_samples: number of passes over which a gradient is averaged.

    Raises:
        SettingError: if the images, the labels, the weights' precision or the logits' shape are wrong.
        NonFiniteLogitsError: if logits are NaN or infinite.
        GradientError: if a gradient is, or the first is zero for all examples.
    """
    require(isinstance(network, nn.Module), "network", type(network).__name__, "give an nn.Module, images to logits")
    check_precision(network)
    check_images(x)
    check_label_shape(y, len(x))
    with attack_mode(network, mode), fast_image_gradients(network), checked_before(), part():
        x, y = x.clone(), y.to(torch.int64, copy=True)  # tensors of inference mode cannot enter a graph
        checked = Checked(network, y, certain=num_samples == 1 and not (has_noise(network) or _drops(network)))
        yield checked, x, y
        checked.finish()


def has_noise(network: nn.Module) -> bool:
    """Whether passes of an image differ: by its noise, or because a method's class says so (``stochastic``)."""
    return getattr(network, "stochastic", False) or any(source.enabled for source in noise_sources(network))


def _drops(network: nn.Module) -> bool:
    """Whether a module draws at random, as dropout does in the modes ``keep`` and ``frozen`` of a training."""
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)
    return any(isinstance(module, kinds) and module.training for module in network.modules())


class Checked(nn.Module):
    """A network whose logits and gradients are checked: the first ones at once, the sum of all others at the end.

    A check makes the host wait for the device; of later passes there are many.

    Args:
        network: classifier, (B, C, H, W) -> logits (B, K).
        y: labels (B,) of the first images that it will see.
        certain: whether all passes of an image give the same logits.
    """

    def __init__(self, network: nn.Module, y: Tensor, certain: bool = True) -> None:
        super().__init__()
        self.network, self.certain = network, certain
        self._y = y
        self._first_pass = self._first_gradient = True
        self._logits = self._gradients = torch.zeros((), device=y.device)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K).

        Raises:
            SettingError: if the network fails on images of another type than its weights'.
        """
        try:
            logits: Tensor = self.network(x)
        except RuntimeError as error:
            types = {weight.dtype for weight in self.network.parameters()} - {x.dtype}
            if self._first_pass and types:
                remedy = f"the network has weights of {types.pop()}, and failed; convert the images or the network"
                raise SettingError("images", x.dtype, remedy) from error
            raise
        if self._first_pass:
            check_logits(logits, len(x))
            check_labels(self._y, len(self._y), logits.shape[1])
            self._first_pass = False
        else:
            self._logits = self._logits + logits.detach().sum(dtype=torch.float32)
        return logits

    def gradient(self, total: Tensor, at: Tensor, logits: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Gradient of the sum ``total`` of all examples' losses to ``at`` (B, ...), of the same shape.

        Args:
            total: a number.
            at: images, or the points from which images are computed.
            logits: function from such points to logits (B, K); by default the network, and points are images.

        Raises:
            GradientError: if the first gradient is NaN or infinite.
            ZeroGradientError: if no graph leads to ``at``, or the first gradient is zero for every example although
                the logits change with ``at``: no step would go anywhere.
        """
        raw = _differentiate(total, at)
        gradient = torch.zeros_like(at) if raw is None else raw
        self._check_gradient(gradient, raw is None, at, logits or self.network)
        return gradient

    def gradients(self, logits: Tensor, at: Tensor) -> Tensor:
        """Gradients (B, K, d) of the logits (B, K) of images ``at`` to these, flat; errors as of :meth:`gradient`."""
        raw = [_differentiate(each.sum(), at, retain_graph=True) for each in logits.unbind(1)]
        gradients = torch.stack([(torch.zeros_like(at) if one is None else one).flatten(1) for one in raw], 1)
        self._check_gradient(gradients, all(one is None for one in raw), at, self.network)
        return gradients

    def finish(self) -> None:
        """Check all that was not yet checked.

        Raises:
            NonFiniteLogitsError: if logits were NaN or infinite.
            GradientError: if a gradient was.
        """
        logits, gradients = torch.stack((self._logits, self._gradients)).tolist()
        beyond = "NaN, infinite or beyond float32's range, at images that the attack tried"
        if not math.isfinite(logits):
            raise NonFiniteLogitsError(f"network: got logits that are {beyond}: no metric of it means anything")
        if not math.isfinite(gradients):
            raise GradientError(f"network: got gradients that are {beyond}: {_REMEDY}")

    def _check_gradient(self, gradient: Tensor, cut: bool, at: Tensor, logits: Callable[[Tensor], Tensor]) -> None:
        total = gradient.sum(dtype=torch.float32)
        if self._first_gradient:
            self._first_gradient = False
            self._check_first(gradient, float(total), cut, at.detach(), logits)
        else:
            self._gradients = self._gradients + total

    def _check_first(
        self, gradient: Tensor, total: float, cut: bool, at: Tensor, logits: Callable[[Tensor], Tensor]
    ) -> None:
        if not math.isfinite(total):
            bad = int((~gradient.isfinite()).flatten(1).any(1).sum())
            if bad:
                raise GradientError(
                    f"network: got gradients that are NaN or infinite for {bad} of {len(at)} examples: {_REMEDY}"
                )
        if cut:
            raise ZeroGradientError(
                f"network: got logits from which no gradient leads to the {len(at)} examples (detach, argmax); "
                "let it through in the network, or take Square, which needs none"
            )
        if total == 0.0 and not gradient.any() and (why := self._why_zero(at, logits)):
            raise ZeroGradientError(
                f"network: got a gradient of zero for all {len(at)} examples, though its logits vary; {why}, "
                "or take Square, which needs no gradient"
            )

    def _why_zero(self, at: Tensor, logits: Callable[[Tensor], Tensor]) -> str | None:
        """The fault that makes the gradient at ``at`` zero, as a sentence fragment; None if there is none.

        A constant network has none. An image may lie where all ReLUs of a network are off: this is no fault of the
        network, since its gradient is not zero elsewhere. A loss may saturate on fewer than ``FEWEST`` examples by
        chance.
        """
        points = (at, at.roll(1, 0), 1 - at, torch.zeros_like(at), torch.ones_like(at), 0.7 * at + 0.2)
        with attack_mode(self.network, "frozen"), uncounted():
            every = torch.stack([_with_the_same_noise(logits, point) for point in points])
            change = (every - every[0]).abs().flatten(1).amax(1)
            if not change.max() > 1e-6 * every.abs().max():
                return None
            slopes = [_has_slope(logits, point) for point in points]
            between = any(slopes) or _slope_between(logits, at, points[int(change.argmax())])
        if slopes[0]:
            few = len(at) < FEWEST  # a network may be that sure of some images
            return None if few else "the loss saturates: ascend another (margin, dlr)"
        return None if between else "it rounds: let gradients through"


def _has_slope(logits: Callable[[Tensor], Tensor], at: Tensor) -> bool:
    """Whether any logit has a gradient at any of the points."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        each = _with_the_same_noise(logits, at)
        weights = torch.linspace(1, 2, each.shape[1], dtype=each.dtype, device=each.device)
        gradient = _differentiate((each * weights).sum(), at)
    return gradient is not None and bool(gradient.any())


def _slope_between(logits: Callable[[Tensor], Tensor], start: Tensor, end: Tensor) -> bool:
    """Whether a logit has a slope on the way between points of different logits, which a network with steps lacks.

    A network with flat regions, such as one whose ReLUs are off at both ends, has it where they meet.
    """
    for _ in range(BISECTIONS):
        middle = (start + end) / 2
        if _has_slope(logits, middle):
            return True
        first, here, last = (_with_the_same_noise(logits, point) for point in (start, middle, end))
        start, end = (start, middle) if (here - first).abs().max() > (last - here).abs().max() else (middle, end)
    return False


_REMEDY = "clip or lower what overflows in it, or take Square, which needs no gradient"


def _differentiate(total: Tensor, at: Tensor, retain_graph: bool = False) -> Tensor | None:
    """The gradient of ``total`` to ``at``; None where no graph leads there."""
    if not total.requires_grad:
        return None
    gradient: Tensor | None = torch.autograd.grad(total, at, retain_graph=retain_graph, allow_unused=True)[0]
    return gradient


def _with_the_same_noise(logits: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    with rewound(at.device):
        return logits(at)


def named_loss(loss: Loss | str) -> Loss:
    """The loss itself, or the one of that name.

    Raises:
        SettingError: if there is none of that name.
    """
    if isinstance(loss, str):
        require(loss in LOSSES, "loss", loss, f"give one of {', '.join(LOSSES)} or a function (logits, y) -> (B,)")
        return LOSSES[loss]
    return loss


def check_loss(loss: Loss, network: nn.Module, x: Tensor) -> None:
    """Check, by a pass of images ``x`` (B, C, H, W), that the network has enough classes for the loss ``dlr``.

    Raises:
        SettingError: if it has not.
    """
    if loss is dlr:
        logits = network(x)
        dlr(logits, logits.argmax(1))


def judge(network: Checked, loss: Loss, x: Tensor, y: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """Loss of each example (B,), the mean over so many passes, and whether it is known to be misclassified (B,).

    With noise, no example is: some pass misclassifies one of many images by chance, and an attack that stopped there
    would spare an image that most passes classify correctly. Passes are separate, since the noise of a network may be
    the same for all examples of a batch.

    Raises:
        SettingError: if the loss is not one number per example.
    """
    logits = [network(x) for _ in range(num_samples)]
    return _mean([_checked(loss(each, y), y) for each in logits]), _known_wrong(network, logits[0], y)


def input_gradient(
    network: Checked, loss: Loss, x: Tensor, y: Tensor, num_samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient (B, C, H, W) of each example's loss to its image, mean over passes, and what :func:`judge` gives."""
    x = x.detach().requires_grad_()
    gradients, losses = [], []
    for _ in range(num_samples):  # one graph at a time
        with torch.enable_grad():
            logits = network(x)
            each = _checked(loss(logits, y), y)
            gradients.append(network.gradient(each.sum(), x))  # the sum: examples do not depend on each other
        losses.append(each.detach())
    return _mean(gradients), _mean(losses), _known_wrong(network, logits, y)


def _mean(samples: list[Tensor]) -> Tensor:
    return samples[0] if len(samples) == 1 else torch.stack(samples).mean(0)


def _known_wrong(network: Checked, logits: Tensor, y: Tensor) -> Tensor:
    wrong: Tensor = logits.argmax(1) != y
    return wrong & network.certain


def _checked(each: Tensor, y: Tensor) -> Tensor:
    require(each.shape == (len(y),), "loss", tuple(each.shape), f"return one number per example, shape ({len(y)},)")
    return each
