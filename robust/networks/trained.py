"""Networks with the weights of an earlier training."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust.errors import SettingError, require


def load_part(network: nn.Module, path: str, part: str, setting: str) -> dict[str, Any]:
    """Take the weights of one network from a checkpoint that holds several.

    Args:
        network: a network of the same form.
        path: the checkpoint, of ``train.py fit``.
        part: the network's name in the module that was trained, such as ``generator``.
        setting: name of the path's setting, for the errors.

    Returns:
        The checkpoint's whole content.

    Raises:
        SettingError: if the file is absent, no checkpoint, without that part, or of another network.
    """
    checkpoint, weights = read_part(path, part, setting)
    own = network.state_dict()
    wrong = sorted(own.keys() ^ weights.keys()) or [name for name in own if own[name].shape != weights[name].shape]
    remedy = f"configure the same {part} as at its training"
    require(not wrong, setting, path, f"it differs in {len(wrong)} tensors, first {wrong[:1]}; {remedy}")
    network.load_state_dict(weights)
    return checkpoint


def read_part(path: str, part: str, setting: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint's whole content, and the weights of one network in it; arguments as of :func:`load_part`.

    Raises:
        SettingError: if the file is absent, no checkpoint, or without that part.
    """
    remedy = f"no such file; train the {part} first, or name its checkpoint"
    require(Path(path).is_file(), setting, path, remedy)
    remedy = "the file is no checkpoint, or its end is missing; give one that fit wrote"
    require(zipfile.is_zipfile(path), setting, path, remedy)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state = checkpoint["state_dict"]
    except (pickle.UnpicklingError, RuntimeError, KeyError) as error:
        raise SettingError(setting, path, remedy) from error
    prefix = f"{part}."
    weights = {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}
    require(bool(weights), setting, path, f"it holds no {part}; give a checkpoint of a model that has one")
    return checkpoint, weights
