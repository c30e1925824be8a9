"""Networks with the weights of an earlier training."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from robust.checkpoints import read_saved
from robust.errors import require


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
    remedy = f"give a checkpoint that fit wrote, of a training of the {part}"
    checkpoint: Any = read_saved(path, setting, remedy)
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    fits = isinstance(state, dict) and all(isinstance(weight, Tensor) for weight in state.values())
    require(fits, setting, path, f"it holds no state_dict; {remedy}")
    assert isinstance(state, dict)
    prefix = f"{part}."
    weights = {name.removeprefix(prefix): weight for name, weight in state.items() if str(name).startswith(prefix)}
    require(bool(weights), setting, path, f"it holds no {part}; give a checkpoint of a model that has one")
    return checkpoint, weights
