"""Trained networks by name, to attack, certify and compare at once.

Each is a file NAME.safetensors in this folder, with a model card NAME.md beside it: what was trained, how, and what was
measured. The file holds the weights of the whole module, and in its header the settings from which it is built again.
"""

from __future__ import annotations

import difflib
import importlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robust.errors import SettingError, require

PREFIX = "zoo:"
HEADER = "checkpoint"  # name of the metadata with what a checkpoint has besides tensors
_FOLDER = Path(__file__).parent
_TYPES = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "BOOL": torch.bool}


def names() -> list[str]:
    """Names of all networks.

    >>> "digits_adversarial_training" in names()
    True
    """
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def load(name: str) -> nn.Module:
    """A trained classifier in evaluation mode: from images (B, C, H, W) in [0, 1] to logits (B, K).

    Raises:
        SettingError: if there is none of that name.

    >>> network = load("digits_adversarial_training")
    >>> network(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    return load_part(name, "classifier")


def load_part(name: str, part: str) -> nn.Module:
    """One network of a trained module in evaluation mode.

    Args:
        name: name of the module.
        part: name of the network in the module, such as ``classifier``, or ``generator``, the network of a
            module's learned budgets or noise.

    Raises:
        SettingError: if there is no such module, or it has no such part.
    """
    content = checkpoint(name)
    state, prefix = content["state_dict"], f"{part}."
    weights = {key.removeprefix(prefix): weight for key, weight in state.items() if key.startswith(prefix)}
    parts = ", ".join(sorted({key.partition(".")[0] for key in state}))
    require(bool(weights), "part", part, f"{name} has none; it has {parts}")
    network: nn.Module = _built(content["model"]["init_args"][part])
    network.load_state_dict(weights)
    return network.eval()


def checkpoint(name: str) -> dict[str, Any]:
    """The content of a checkpoint with weights alone, as ``train.py fit`` writes one.

    Raises:
        SettingError: if there is none of that name.
    """
    path = _FOLDER / f"{name}.safetensors"
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]}? It has" if near else "it has"
        raise SettingError("name", name, f"the zoo has no such network; {hint} {', '.join(names())}")
    # The safetensors package would read it too, but robust needs torch alone.
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    about = json.loads(header.pop("__metadata__")[HEADER])
    return {**about, "state_dict": {key: _tensor(each, content[start:]) for key, each in header.items()}}


def card(name: str) -> str:
    """The model card: what was trained, how, and what was measured, in Markdown with a YAML header.

    >>> card("digits_standard_training").splitlines()[11]
    '# digits_standard_training.safetensors'
    """
    return (_FOLDER / f"{name}.md").read_text(encoding="utf-8")


def _tensor(entry: dict[str, Any], content: bytes) -> Tensor:
    first, last = entry["data_offsets"]
    kind, shape = _TYPES[entry["dtype"]], entry["shape"]
    assert last - first == math.prod(shape) * kind.itemsize
    return torch.frombuffer(bytearray(content[first:last]), dtype=kind).reshape(shape)


def _built(settings: Any) -> Any:
    """Objects of robust in place of their ``class_path`` and ``init_args``."""
    if isinstance(settings, list):
        return [_built(each) for each in settings]
    if not isinstance(settings, dict) or "class_path" not in settings:
        return settings
    module, _, name = settings["class_path"].rpartition(".")
    assert module.startswith("robust."), module
    arguments = {key: _built(value) for key, value in settings["init_args"].items()}
    return getattr(importlib.import_module(module), name)(**arguments)
