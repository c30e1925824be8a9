"""A classifier as an ONNX file, compared with the network by onnxruntime."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust._packages import package
from robust.errors import SettingError, require
from robust.modes import attack_mode
from robust.networks import without_noise

OPSET = 18  # the lowest that torch.onnx writes without a conversion
TOLERANCE = 1e-5
BATCH = 2  # torch.export takes a dimension of size 1 for a constant


def write_onnx(
    network: nn.Module, image_shape: tuple[int, int, int], path: str | Path, batch: int | None = None
) -> float:
    """Write a network in evaluation mode, and compare its logits with those that onnxruntime computes from the file.

    The input ``images`` has shape (B, C, H, W), the output ``logits`` (B, K), both float32. A network with noise
    (:class:`robust.networks.NoiseSource`) is written as its mean network, without noise: a file has no random draws.

    Args:
        network: classifier, (B, C, H, W) -> logits (B, K), on any device, weights in float32.
        image_shape: (C, H, W).
        path: the file.
        batch: the only batch size that the file accepts; None for any.

    Returns:
        The largest difference of a logit, relative to the largest logit if that is above 1; at most 1e-5.

    Raises:
        SettingError: if a package is missing, the logits are not float32, the network draws random numbers of its own,
            torch cannot export it, or onnxruntime computes other logits.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        package(name)
    weight = next(network.parameters(), torch.empty(0))
    images = torch.rand(batch or BATCH, *image_shape, generator=torch.Generator().manual_seed(0)).to(weight.device)
    with attack_mode(network, "eval"), without_noise(network):
        logits = network(images)
        kind = type(network).__name__
        remedy = "the file's logits are float32; return logits.float() and call float() on the network"
        require(logits.dtype == torch.float32, "network", f"{kind} with logits of {logits.dtype}", remedy)
        remedy = "a file has no random draws; derive its noise from robust's NoiseSource"
        require(torch.equal(logits, network(images)), "network", f"{kind}, whose passes differ", remedy)
        _export(network, images, Path(path), any_batch=batch is None)
    difference = _difference(Path(path), images, logits)
    remedy = f"onnxruntime computes other logits: they differ by {difference:.2g}, allowed is {TOLERANCE:g}"
    require(difference <= TOLERANCE, "network", kind, remedy)
    return difference


def _export(network: nn.Module, images: Tensor, path: Path, *, any_batch: bool) -> None:
    shapes: Any = ({0: torch.export.Dim("batch")},) if any_batch else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations
            program: Any = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=shapes,
                verbose=False,
            )
            program.save(str(path), external_data=False)
    except OSError as error:
        raise SettingError("path", str(path), f"it cannot be written: {error.strerror or error}") from error
    except Exception as error:  # the exporter raises whatever a layer leads to
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise SettingError("network", type(network).__name__, f"torch.onnx cannot export it: {reason}") from error


def _difference(path: Path, images: Tensor, logits: Tensor) -> float:
    runtime = package("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (computed,) = session.run(["logits"], {"images": images.cpu().numpy()})
    expected = logits.cpu()
    scale = max(1.0, float(expected.abs().max()))
    return float((torch.from_numpy(computed) - expected).abs().max()) / scale
