"""Checks of batches and of the weights' precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from robust.checks import check_range
from robust.errors import require

HALF = (torch.float16, torch.bfloat16)


def check_images(x: Tensor, name: str) -> None:
    """Check that ``x`` holds images: finite floats of any precision in [0, 1], of shape (B, C, H, W), B at least 1.

    Raises:
        SettingError: if it does not; the message says what ``x`` holds and what is expected.
    """
    require(x.is_floating_point(), name, str(x.dtype), "give float images in [0, 1] (uint8 images divided by 255)")
    require(x.dim() == 4 and x.numel() > 0, name, tuple(x.shape), "give at least one image, shape (B, C, H, W)")
    check_range(x, name)


def labelled(batch: Any, name: str, count: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """The images and labels of a batch, or of each batch in a list of ``count`` batches.

    Args:
        batch: output of the loader.
        name: name of the batch in errors.
        count: number of batches; above 1, ``batch`` is a list of them.

    Raises:
        SettingError: if ``batch`` is of another type or length.
    """
    if count > 1:
        fits = isinstance(batch, list | tuple) and len(batch) == count and not _is_pair(batch)
        remedy = f"the method takes {count} batches a step; give one of our data modules, or a CombinedLoader"
        require(fits, name, _described(batch), remedy)
    for part in batch if count > 1 else [batch]:
        remedy = "give (images, labels), tensors of shape (B, C, H, W) and (B,)"
        require(_is_pair(part), name, _described(part), remedy)
        yield part[0], part[1]


def images_of(batch: Any, name: str) -> Tensor:
    """The images of a batch with or without labels.

    Raises:
        SettingError: if it has no images.
    """
    images = batch[0] if isinstance(batch, list | tuple) and len(batch) > 0 else batch
    require(isinstance(images, Tensor), name, _described(batch), "give images (B, C, H, W), alone or with labels (B,)")
    assert isinstance(images, Tensor)
    return images


def check_precision(module: LightningModule, trainer: Trainer, what: str) -> None:
    """Refuse weights of half precision: they round by more than the differences that attacks and bounds measure.

    Args:
        module: the module that is trained or evaluated.
        trainer: the trainer whose precision is checked.
        what: name of the method or evaluation that needs float32, for errors.

    Raises:
        SettingError: if the trainer or a weight has half precision.
    """
    remedy = f"{what} attacks or bounds the network, which needs weights of float32; give 32-true or bf16-mixed"
    require(trainer.precision not in ("16-true", "bf16-true"), "trainer.precision", trainer.precision, remedy)
    half = {str(weight.dtype) for weight in module.parameters() if weight.dtype in HALF}
    require(not half, "model", " and ".join(sorted(half)), remedy)


def check_scales(module: LightningModule, *, together: bool) -> None:
    """Refuse ``16-mixed`` where several optimizers step after one backward pass.

    The first step may change the scale of the others' gradients.

    Args:
        module: the module that is trained.
        together: whether several optimizers step so.

    Raises:
        SettingError: in this precision.
    """
    scaled = together and module.trainer.precision == "16-mixed"
    remedy = f"{type(module).__name__} steps several optimizers after one backward pass; give bf16-mixed or 32-true"
    require(not scaled, "trainer.precision", "16-mixed", remedy)


def _is_pair(batch: Any) -> bool:
    return isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)


def _described(batch: Any) -> str:
    kind = type(batch).__name__
    return f"{kind} of {len(batch)}" if isinstance(batch, list | tuple) else kind
