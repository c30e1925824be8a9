"""A network's weights as a safetensors file, which holds tensors and text and runs no code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from robust._packages import package
from robust.errors import SettingError


def write_safetensors(network: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the network's ``state_dict``, and compare the file with it.

    Read it by ``network.load_state_dict(safetensors.torch.load_file(path))``. Tensors that share memory are written
    once for each name.

    Args:
        network: network with a ``state_dict``.
        path: path of the file.
        metadata: text for the file's header, by name.

    Raises:
        SettingError: if the package is missing, or the file cannot be written.
    """
    library = package("safetensors.torch")
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    try:
        library.save_file(state, str(path), metadata={"format": "pt", **(metadata or {})})
        read = library.load_file(str(path))
    except (OSError, package("safetensors").SafetensorError) as error:
        raise SettingError("path", str(path), f"it cannot be written: {error}") from error
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())
