"""Checks of networks on blank images, before anything is trained or evaluated."""

from __future__ import annotations

import math
from functools import partial
from itertools import chain
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from robust.attacks import PGD
from robust.errors import SettingError, require
from robust.modes import attack_mode, keep_modes
from robust.passes import uncounted
from robust.threat_models import ThreatModel


def blank_images(network: nn.Module, batch: int, image_shape: tuple[int, int, int]) -> Tensor:
    """Black images (batch, C, H, W) of the data type and on the device of the network's weights.

    In ``setup``, the weights are not yet on the device that Lightning's ``module.device`` names.
    """
    weight = next(chain(network.parameters(), network.buffers()), torch.empty(0))
    return torch.zeros(batch, *image_shape, device=weight.device, dtype=weight.dtype)


def check_attack(
    name: str, attack: PGD, network: nn.Module, threat_model: ThreatModel, image_shape: tuple[int, int, int]
) -> None:
    """Check that an attack can work on a network, before a training that may use it only after some epochs.

    Args:
        name: name of the attack's setting, for errors.
        attack: attack to check.
        network: network from images (B, C, H, W) to logits (B, K).
        threat_model: threat model of the attack.
        image_shape: shape of the images, (C, H, W).

    Raises:
        SettingError: if it cannot, such as with a loss that needs more classes.
    """
    with attack_mode(network, "eval"), torch.no_grad(), uncounted():
        try:
            attack.check(network, threat_model, blank_images(network, 2, image_shape))
        except SettingError as error:
            raise SettingError(name, type(attack).__name__, str(error)) from error


def check_double(name: str, network: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Check that a network with weights of float64 takes images of float32.

    Raises:
        SettingError: if it does not.
    """
    if blank_images(network, 2, image_shape).dtype != torch.float64:
        return
    try:
        run_blank(name, network, image_shape, dtype=torch.float32)
    except SettingError as error:
        remedy = "the data's images are float32; call float() on the network, or give trainer.precision 64-true"
        raise SettingError(name, f"{type(network).__name__} with weights of float64", remedy) from error


def run_blank(
    name: str,
    network: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    training: bool = False,
    batch: int = 2,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The network's output on blank images; modes, running statistics and random generators do not change.

    Args:
        name: name of the network's setting, for errors.
        network: network from images (B, C, H, W).
        image_shape: shape of the images, (C, H, W).
        training: whether to run the network in training mode.
        batch: number of images.
        dtype: type of the images; that of the network's weights by default.

    Raises:
        SettingError: if the network fails on such images, changes them, or does not return a tensor.
    """
    statistics = [(buffer, buffer.clone()) for buffer in network.buffers()] if training else []
    blank = blank_images(network, batch, image_shape).to(dtype)
    version = None if blank.is_inference() else blank._version
    try:
        devices = [blank.device] if blank.is_cuda else []
        with keep_modes(network), torch.no_grad(), torch.random.fork_rng(devices):
            network.train(training)
            output: Any = network(blank)
            for buffer, value in statistics:
                buffer.copy_(value)
    except SettingError:
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise SettingError(name, type(network).__name__, f"the data's images are {image_shape}; {reason}") from error
    changed = version is not None and blank._version != version
    remedy = "it changes the images in place, also those of the data; write x = x - mean rather than x -= mean"
    require(not changed, name, type(network).__name__, remedy)
    where = "training" if training else "evaluation"
    kind = f"{type(network).__name__} with {type(output).__name__} as output in {where} mode"
    require(isinstance(output, Tensor), name, kind, "give a network that returns a tensor")
    assert isinstance(output, Tensor)
    return output


_NOISE = "derive its noise from robust.networks.NoiseSource, over which evaluations average, or switch it off there"


def check_repeatable(
    name: str, network: nn.Module, image_shape: tuple[int, int, int], outputs: str = "logits", noise: str = _NOISE
) -> None:
    """Check that passes of an image in evaluation mode give the same logits, also alone, for a network without noise.

    Verdicts of one pass would be verdicts of one draw, and attacks could not average over unknown draws. Logits that
    depend on the other images of a batch would make every metric depend on the size of the batches.

    Args:
        name: name of the network's setting, for errors.
        network: network from images (B, C, H, W).
        image_shape: shape of the images, (C, H, W).
        outputs: what the network's outputs are, in the plural.
        noise: remedy for a network with noise.

    Raises:
        SettingError: if they differ, or if the network fails on one image.
    """
    blank = blank_images(network, 2, image_shape)  # on black images without biases, dropout changes nothing
    images = torch.rand(blank.shape, generator=torch.Generator().manual_seed(0)).to(blank)
    devices = [blank.device] if blank.is_cuda else []
    of_batch = f"{type(network).__name__}, whose {outputs} depend on the other images of a batch in evaluation mode"
    give = "give layers that use none of their values there, such as a batch-norm with track_running_stats true"
    with attack_mode(network, "eval"), torch.no_grad(), uncounted(), torch.random.fork_rng(devices):
        one, other = network(images), network(images)
        try:
            alone = torch.cat([network(images[:1]), network(images[1:])])
        except (RuntimeError, ValueError, IndexError) as error:
            reason = str(error).split("\n")[0]
            raise SettingError(name, of_batch, f"one image alone fails: {reason}; {give}") from error
    # evaluations report logits that are not finite
    largest, tolerance = float(one.abs().max()), max(1e-3, 16 * torch.finfo(one.dtype).eps)
    close = partial(torch.allclose, one, rtol=tolerance, atol=tolerance * largest)
    finite, kind = math.isfinite(largest), type(network).__name__
    require(not finite or close(other), name, f"{kind}, whose passes differ in evaluation mode", noise)
    require(not finite or (alone.shape == one.shape and close(alone)), name, of_batch, give)


def check_registered(name: str, network: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Check that all weights behind a network's output are its parameters, which layers in a plain list are not.

    Raises:
        SettingError: if there are others: no optimizer would train them, and no checkpoint would have them.
    """
    blank = blank_images(network, 2, image_shape)
    own = {id(weight) for weight in chain(network.parameters(), network.buffers())}
    devices = [blank.device] if blank.is_cuda else []
    with attack_mode(network, "eval"), torch.enable_grad(), uncounted(), torch.random.fork_rng(devices):
        others = [leaf for leaf in leaves(network(blank)) if id(leaf) not in own]
        # a tensor that a pass makes, such as a copy of its images, is not in the next pass
        again = {id(leaf) for leaf in leaves(network(blank))} if others else set()
        others = [leaf for leaf in others if id(leaf) in again]
    shapes = ", ".join(str(tuple(weight.shape)) for weight in others[:3])
    remedy = f"weights that are not its parameters, of shapes {shapes}, would not be trained or saved; put layers in "
    remedy += "nn.ModuleList or nn.ModuleDict and tensors in nn.Parameter, or freeze them by requires_grad_(False)"
    require(not others, name, type(network).__name__, remedy)


def leaves(output: Tensor) -> list[Tensor]:
    """The tensors that require a gradient and from which an output was computed, each once."""
    found, seen, waiting = list[Tensor](), set[Any](), [output.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    return found


def warn_of_probabilities(name: str, output: Tensor) -> None:
    """Warn if a classifier's output, (B, K), are probabilities: losses and attacks take logits.

    The softmax of a softmax lies in a narrow range, so that a network hardly learns and its gradients nearly vanish.
    """
    if bool((output >= 0).all()) and torch.allclose(output.sum(-1), torch.ones_like(output[..., 0])):
        remedy = "give logits: leave out the softmax at its end"
        rank_zero_warn(f"{name}: its outputs sum to 1, as probabilities do; {remedy}")


def check_training_mode(
    name: str, network: nn.Module, image_shape: tuple[int, int, int], expected: Tensor, batch: int
) -> None:
    """Check that the network's output has the same shape in training mode as in evaluation mode.

    Args:
        name: name of the network's setting, for errors.
        network: network from images (B, C, H, W).
        image_shape: shape of the images, (C, H, W).
        expected: output in evaluation mode, (2, ...).
        batch: number of images in a training batch of one process.

    Raises:
        SettingError: if the shapes differ, or the network normalises over a batch of one image.
    """
    try:
        output = run_blank(name, network, image_shape, training=True, batch=min(batch, 2))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        remedy = f"{type(network).__name__} normalises over the batch of each process; give at least 2 images for each"
        raise SettingError("data.batch_size", batch, remedy) from error
    kind = f"{type(network).__name__} with output {tuple(output.shape[1:])} in training mode"
    same = output.shape[1:] == expected.shape[1:]
    require(same, name, kind, f"give a network with the same output in both modes, {tuple(expected.shape[1:])}")
