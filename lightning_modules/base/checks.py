"""Checks at the door: batches of any loader, networks on a blank image, the precision of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from robust.checks import check_range
from robust.errors import SettingError, require
from robust.modes import keep_modes

HALF = (torch.float16, torch.bfloat16)


def check_images(x: Tensor, name: str) -> None:
    """Check that ``x`` holds images: finite floats of any precision in [0, 1], of shape (B, C, H, W), B at least 1.

    Raises:
        SettingError: naming what was found, what is expected and the remedy.
    """
    require(x.is_floating_point(), name, str(x.dtype), "give float images in [0, 1] (uint8 images over 255)")
    require(x.dim() == 4 and x.numel() > 0, name, tuple(x.shape), "give at least one image, shape (B, C, H, W)")
    check_range(x, name)


def labelled(batch: Any, name: str, count: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """The images and labels in a batch of ``count`` of them.

    Args:
        batch: what the loader gave.
        name: what the error calls it.
        count: with more than 1, ``batch`` is a list of so many batches.

    Raises:
        SettingError: if it is none of these.
    """
    if count > 1:
        fits = isinstance(batch, list | tuple) and len(batch) == count and not _is_pair(batch)
        remedy = f"the method takes {count} batches a step: give one of our data modules, or a CombinedLoader"
        require(fits, name, _described(batch), remedy)
    for part in batch if count > 1 else [batch]:
        remedy = "give (images, labels), tensors of shape (B, C, H, W) and (B,)"
        require(_is_pair(part), name, _described(part), remedy)
        yield part[0], part[1]


def images_of(batch: Any, name: str) -> Tensor:
    """The images of a batch with or without labels.

    Raises:
        SettingError: if it has none.
    """
    found = batch[0] if isinstance(batch, list | tuple) and len(batch) > 0 else batch
    require(isinstance(found, Tensor), name, _described(batch), "give images (B, C, H, W), alone or with labels (B,)")
    assert isinstance(found, Tensor)
    return found


def check_precision(module: LightningModule, trainer: Trainer, what: str) -> None:
    """Refuse weights of half precision: their rounding is larger than what attacks and bounds are about.

    Args:
        module: what is trained or evaluated.
        trainer: its precision is asked.
        what: the method or the evaluation that needs more.

    Raises:
        SettingError: if there are such weights.
    """
    remedy = f"{what} attacks or bounds the network, which needs weights of float32; give 32-true or bf16-mixed"
    require(trainer.precision not in ("16-true", "bf16-true"), "trainer.precision", trainer.precision, remedy)
    found = {str(weight.dtype) for weight in module.parameters() if weight.dtype in HALF}
    require(not found, "model", " and ".join(sorted(found)), remedy)


def run_blank(
    name: str,
    network: nn.Module,
    image_shape: tuple[int, int, int],
    device: torch.device,
    *,
    training: bool = False,
    batch: int = 2,
) -> Tensor:
    """The network's output on blank images, its modes, statistics and random numbers left as they are.

    Args:
        name: the network's setting, for the errors.
        network: takes images (B, C, H, W).
        image_shape: (C, H, W).
        device: where its weights are.
        training: whether it runs in training mode.
        batch: number of images.

    Raises:
        SettingError: if it does not take them, or its output is no tensor.
    """
    statistics = [(buffer, buffer.clone()) for buffer in network.buffers()] if training else []
    try:
        devices = [device] if device.type == "cuda" else []
        with keep_modes(network), torch.no_grad(), torch.random.fork_rng(devices):
            network.train(training)
            weight = next(network.parameters(), torch.empty(0))  # of float64 or bfloat16 in "true" precision
            output: Any = network(torch.zeros(batch, *image_shape, device=device, dtype=weight.dtype))
            for buffer, value in statistics:
                buffer.copy_(value)
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise SettingError(name, type(network).__name__, f"the data's images are {image_shape}; {reason}") from error
    where = "training" if training else "evaluation"
    kind = f"{type(network).__name__} with {type(output).__name__} as output in {where} mode"
    require(isinstance(output, Tensor), name, kind, "give one that returns a tensor")
    assert isinstance(output, Tensor)
    return output


def check_training_mode(
    name: str, network: nn.Module, image_shape: tuple[int, int, int], device: torch.device, expected: Tensor, batch: int
) -> None:
    """Check that the network gives in training mode what it gives in evaluation mode, in shape.

    Args:
        name: the network's setting, for the errors.
        network: takes images (B, C, H, W).
        image_shape: (C, H, W).
        device: where its weights are.
        expected: its output in evaluation mode, (2, ...).
        batch: images in a training batch of a process.

    Raises:
        SettingError: if it does not, or it normalises over a batch of one image.
    """
    try:
        output = run_blank(name, network, image_shape, device, training=True, batch=min(batch, 2))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        remedy = f"{type(network).__name__} normalises over the batch of each process; give at least 2 images for each"
        raise SettingError("data.batch_size", batch, remedy) from error
    kind = f"{type(network).__name__} with output {tuple(output.shape[1:])} in training mode"
    same = output.shape[1:] == expected.shape[1:]
    require(same, name, kind, f"give the same as in evaluation mode, {tuple(expected.shape[1:])}")


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)


def _described(batch: Any) -> str:
    kind = type(batch).__name__
    return f"{kind} of {len(batch)}" if isinstance(batch, list | tuple) else kind
