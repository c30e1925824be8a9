"""What a network consists of beside its weights, as text: saved results of one network are not those of another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.Size)
_OWN = {"training", *vars(nn.Module())}


def structure(network: nn.Module) -> str:
    """The modules of a network in order, each with its class and settings; the same text in another process.

    Settings are attributes that are plain values, tensors or arrays, or containers of such; of other attributes, the
    class. Weights and buffers are left out. Functions count by their names, not by their code.

    >>> structure(nn.ReLU()) == structure(nn.ReLU()), structure(nn.ReLU()) == structure(nn.Tanh())
    (True, False)
    """
    lines = []
    for name, module in network.named_modules():
        settings = {key: _text(value) for key, value in vars(module).items() if key not in _OWN}
        kind = type(module)
        lines.append(f"{name}: {kind.__module__}.{kind.__qualname__} {settings}")
    return "\n".join(lines)


def _text(value: object) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    if isinstance(value, np.ndarray):
        return hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, np.generic):
        return repr(value.item())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_text, value)))}}}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_text(key)}: {_text(each)}' for key, each in value.items())}}}"
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
