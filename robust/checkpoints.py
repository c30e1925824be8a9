"""Checkpoints, and other files that torch has saved, read as data: nothing in them is run."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robust import zoo
from robust._packages import package
from robust.errors import SettingError, require

_OLD = b"\x80\x02\x8a\x0a"  # how files of torch's format before 1.6 begin
_WRAPPERS = ("module.", "_orig_mod.")  # what nn.DataParallel and torch.compile put before the names of all weights


def is_elsewhere(path: str) -> bool:
    """Whether a path is a URL or names a checkpoint of the zoo."""
    return "://" in path or path.startswith(zoo.PREFIX)


def read_saved(
    path: str | Path,
    setting: str,
    remedy: str,
    map_location: torch.device | str = "cpu",
    given: str | None = None,
) -> Any:
    """Read a file of ``torch.save`` that holds tensors, numbers, text, and nests of them.

    Args:
        path: path of the file.
        setting: name of the path's setting, for the errors.
        remedy: advice in the errors.
        map_location: device of the tensors.
        given: the given value in the errors; the path by default.

    Raises:
        SettingError: if the file is absent, cannot be read, is damaged, or holds objects of other classes, which could
            run code.
    """
    file, name = Path(path), given or str(path)
    require(file.is_file(), setting, name, f"no such file; {remedy}")
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()  # torch itself does not look at the checksums
        require(damaged is None, setting, name, f"it is damaged at {damaged}; {remedy}")
        return torch.load(file, map_location=map_location, weights_only=True)
    except SettingError:
        raise
    except zipfile.BadZipFile as error:
        if file.open("rb").read(len(_OLD)) == _OLD:
            old = "torch's old format, which has no checksums; load it with torch.load and save it again"
            raise SettingError(setting, name, f"it is in {old}") from error
        raise SettingError(setting, name, f"its end is missing, or it is of another kind; {remedy}") from error
    except OSError as error:
        raise SettingError(setting, name, f"it cannot be read ({error.strerror or error}); {remedy}") from error
    except Exception as error:  # of a broken archive torch raises whatever its bytes lead to
        raise SettingError(setting, name, f"{_reason(error)}; {remedy}") from error


def load_weights(network: nn.Module, path: str, setting: str) -> None:
    """Load a network's weights from a file of its own.

    Args:
        network: the network that gets them.
        path: a ``.safetensors`` file; or a file of ``torch.save`` with a ``state_dict``, alone or under that name; or
            ``zoo:NAME``. Of a checkpoint of a training, the classifier is loaded. The names of all weights may begin
            with that of a wrapper, ``module.`` or ``_orig_mod.``. For a :class:`Normalized`, the file may also be of
            the network behind the normalisation.
        setting: name of the path's setting, for the errors.

    Raises:
        SettingError: if the file is absent, cannot be read or holds no such weights; or if names or shapes differ.
    """
    remedy = "give a .safetensors file, or a .pth file of a state_dict"
    if path.startswith(zoo.PREFIX):
        try:
            state = zoo.load(path.removeprefix(zoo.PREFIX)).state_dict()
        except SettingError as error:
            raise SettingError(setting, path, str(error).partition("; ")[2]) from error
    else:
        state = _read_state(path, setting, remedy)
    from robust.networks.normalize import Normalized  # robust.networks imports this module

    own = network.state_dict()
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in state) and not any(name.startswith(wrapper) for name in own):
            state = {name.removeprefix(wrapper): weight for name, weight in state.items()}
    if isinstance(network, Normalized) and state.keys() == network[1].state_dict().keys():
        network = network[1]  # a file of the bare network
        own = network.state_dict()
    wrong = _differences(own, state)
    require(not wrong, setting, path, f"{wrong}; give weights of this network, or the network's settings of that file")
    network.load_state_dict(state)


def _read_state(path: str, setting: str, remedy: str) -> dict[str, Tensor]:
    """The weights in a file, of the classifier if the file is a checkpoint of fit."""
    content = _read_safetensors(path, setting, remedy) if path.endswith(".safetensors") else None
    content = read_saved(path, setting, remedy) if content is None else content
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    fits = isinstance(state, dict) and bool(state) and all(isinstance(weight, Tensor) for weight in state.values())
    require(fits, setting, path, f"it holds no state_dict of tensors; {remedy}")
    assert isinstance(state, dict)
    return read_part(path, "classifier", setting)[1] if "method" in content else state  # method: a checkpoint of fit


def fits(own: Tensor, given: Tensor) -> bool:
    """Whether a weight can take the values of another: one of a lazy layer takes any shape until its first pass."""
    return is_lazy(own) or own.shape == given.shape


def _differences(own: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """The names that differ between two states and the shapes of those that have the same name, in words."""
    shapes = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in given and not fits(own[name], given[name])
    ]
    groups = {
        "missing": [name for name in own if name not in given],
        "unexpected": [name for name in given if name not in own],
        "wrong shape": shapes,
    }
    return "; ".join(f"{kind}: {_first(names)}" for kind, names in groups.items() if names)


def _first(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _read_safetensors(path: str, setting: str, remedy: str) -> dict[str, Tensor]:
    require(Path(path).is_file(), setting, path, f"no such file; {remedy}")
    load_file = package("safetensors.torch", setting).load_file
    try:
        weights: dict[str, Tensor] = load_file(path)
        return weights
    except (package("safetensors").SafetensorError, OSError) as error:
        raise SettingError(setting, path, f"it cannot be read ({error}); {remedy}") from error


def load_part(network: nn.Module, path: str, part: str, setting: str) -> dict[str, Any]:
    """Take the weights of one network from a checkpoint that holds several.

    Args:
        network: network of the architecture that was trained.
        path: the checkpoint, a dict with a ``state_dict`` whose names begin with the part's.
        part: the network's name in the module that was trained, such as ``generator``.
        setting: name of the path's setting, for the errors.

    Returns:
        The checkpoint's whole content.

    Raises:
        SettingError: if the file is absent, no checkpoint, without that part, or of another network.
    """
    checkpoint, weights = read_part(path, part, setting)
    own = network.state_dict()
    differing = sorted(own.keys() ^ weights.keys()) or [name for name in own if own[name].shape != weights[name].shape]
    remedy = f"configure the same {part} as at its training"
    require(not differing, setting, path, f"it differs in {len(differing)} tensors, first {differing[:1]}; {remedy}")
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


def _reason(error: Exception) -> str:
    if "weights_only" in str(error) or "Unsupported" in str(error):
        return "it holds more than tensors and plain values, which is not read as it could run code"
    return f"it is damaged ({type(error).__name__})"
