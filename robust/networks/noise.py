"""Noise of learned scale inside any network (Jeddi et al. 2020, Learn2Perturb)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from robust.errors import SettingError, require
from robust.modes import in_mode
from robust.random import channel_noise_like, shared_randn


class NoiseSource(nn.Module):
    """Base of every module that adds noise: in each pass anew, in evaluation too, as long as ``enabled`` is set.

    Attributes:
        enabled: whether the module adds noise; without noise, it gives its output's mean.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True

    def draw(self, like: Tensor, shared: bool = False) -> Tensor:
        """Standard normal numbers of that shape: for each example (B, C, ...), or one draw ``shared`` by all."""
        return shared_randn(like.shape, like) if shared else channel_noise_like(like)


class PerturbationInjection(NoiseSource):
    """x + theta * n with n ~ N(0, 1): Gaussian noise of a learned std for each neuron.

    Args:
        shape: shape (C, H, W) of the feature map.
        initial_scale: initial std of every neuron, positive.
        shared_noise: one draw for all examples of a batch, as in the published code; copies of an image in a batch
            then get the same noise. By default each example has its own.

    Raises:
        SettingError: if ``initial_scale`` is not positive.

    Attributes:
        theta: std of each neuron's noise, (1, C, H, W).
    """

    def __init__(self, shape: Sequence[int], initial_scale: float = 0.25, shared_noise: bool = False) -> None:
        super().__init__()
        require(initial_scale > 0, "initial_scale", initial_scale, "give a positive std")
        self.theta = nn.Parameter(torch.full((1, *shape), initial_scale))
        self.shared_noise = shared_noise

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, C, H, W), with noise of the same shape added."""
        if not self.enabled:
            return x
        # theta * n, not a draw from N(0, theta^2): the gradient reaches theta through it
        return torch.addcmul(x, self.theta, self.draw(x[:1] if self.shared_noise else x, self.shared_noise))


class Noisy(nn.Module):
    """Any network with a :class:`PerturbationInjection` after some of its modules.

    ``after=["bn1", "*.addition"]`` gives the layers of the paper in ``ResNetV1`` and ``ResNet18``.

    Args:
        network: network from images (B, C, H, W) to logits (B, K); it is changed.
        after: names of its modules as in ``named_modules``, ``*`` standing for any text.
        image_shape: (channels, height, width) of the images, from which the feature maps' shapes follow.
        initial_scale: see :class:`PerturbationInjection`.
        shared_noise: see :class:`PerturbationInjection`.

    Raises:
        SettingError: if a name fits no module, the network does not run the module, or runs it on maps of several
            shapes, or the network does not take such images.
    """

    def __init__(
        self,
        network: nn.Module,
        after: list[str],
        image_shape: tuple[int, int, int],
        initial_scale: float = 0.25,
        shared_noise: bool = False,
    ) -> None:
        super().__init__()
        for name, shape in _output_shapes(network, after, image_shape).items():
            parent, _, child = name.rpartition(".")
            injection = PerturbationInjection(shape, initial_scale, shared_noise)
            noisy = nn.Sequential(network.get_submodule(name), injection)
            setattr(network.get_submodule(parent), child, noisy)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, K)."""
        logits: Tensor = self.network(x)
        return logits


def injections(network: nn.Module) -> list[PerturbationInjection]:
    """Every :class:`PerturbationInjection` of the network, in the order of its modules."""
    return [module for module in network.modules() if isinstance(module, PerturbationInjection)]


def noise_sources(network: nn.Module) -> list[NoiseSource]:
    """Everything in the network that adds noise, of whatever kind."""
    return [module for module in network.modules() if isinstance(module, NoiseSource)]


def switch_noise(network: nn.Module, on: bool) -> None:
    """Turn all noise of the network on or off."""
    for source in noise_sources(network):
        source.enabled = on


@contextmanager
def without_noise(network: nn.Module) -> Iterator[None]:
    """The mean network: all noise off, each source as it was afterwards."""
    before = [(source, source.enabled) for source in noise_sources(network)]
    switch_noise(network, on=False)
    try:
        yield
    finally:
        for source, enabled in before:
            source.enabled = enabled


def _output_shapes(
    network: nn.Module, after: Sequence[str], image_shape: tuple[int, int, int]
) -> dict[str, tuple[int, ...]]:
    """Shapes of the outputs of the modules that ``after`` names, without the batch.

    Inner modules come first. A module that has several names is there by each of them, once for each place.
    """
    modules = {name: module for name, module in network.named_modules(remove_duplicate=False) if name}
    for pattern in after:
        fits = any(fnmatchcase(name, pattern) for name in modules)
        require(fits, "after", pattern, f"give names of {type(network).__name__}'s modules: {', '.join(modules)}")
    chosen = [name for name in modules if any(fnmatchcase(name, pattern) for pattern in after)]
    by_module = _shapes_by_module(network, [modules[name] for name in chosen], image_shape)
    shapes: dict[tuple[int, str], tuple[str, tuple[int, ...]]] = {}  # by place: one module may be in several
    for name in sorted(chosen, key=lambda name: -name.count(".")):  # children come before parents
        given = sorted(by_module[modules[name]])
        require(len(given) > 0, "after", name, "the network does not run it; leave it out")
        remedy = f"it runs on maps of several shapes, {given}; give each a module of its own"
        require(len(given) == 1, "after", name, remedy)
        parent, _, child = name.rpartition(".")
        shapes.setdefault((id(network.get_submodule(parent)), child), (name, given[0]))
    return dict(shapes.values())


def _shapes_by_module(
    network: nn.Module, modules: list[nn.Module], image_shape: tuple[int, int, int]
) -> dict[nn.Module, set[tuple[int, ...]]]:
    """The shapes that each module's outputs have, without the batch, in one pass of a blank image."""
    shapes: dict[nn.Module, set[tuple[int, ...]]] = {module: set() for module in modules}

    def note(module: nn.Module, _: object, result: Tensor) -> None:
        shapes[module].add(tuple(result.shape[1:]))

    hooks = [module.register_forward_hook(note) for module in shapes]
    try:
        with in_mode(network, "eval"), torch.no_grad():  # of batch normalisation no statistic may move
            network(torch.zeros(1, *image_shape))
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise SettingError("image_shape", tuple(image_shape), f"{type(network).__name__} says: {reason}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return shapes
