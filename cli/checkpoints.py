"""Finds, downloads and checks the checkpoint of a command before anything is built or trained."""

from __future__ import annotations

import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor

from cli.checkpoint_settings import NAME, REMEDY, read_checkpoint
from robust import zoo
from robust.errors import SettingError, require

SECONDS = 8  # of silence after which a download fails
SLOWEST = 10_000  # bytes a second, below which a download fails


class Downloaded(NamedTuple):
    """A fetched checkpoint: its temporary folder, removed with this object, and its path."""

    folder: tempfile.TemporaryDirectory[str]
    path: str


def download(url: str) -> Downloaded:
    """Download a checkpoint to a temporary folder, so that it is read like any other file.

    Lightning's own download would run code in the file, and would reuse a file of the same name from its cache.

    Raises:
        SettingError: if the download fails, or the server is silent for 8 seconds or sends less than 10 kB a second.
    """
    folder = tempfile.TemporaryDirectory(prefix="checkpoint-")
    path = Path(folder.name) / "downloaded.ckpt"
    try:
        with _opened(url) as source, path.open("wb") as target:
            _copy(source, target)
    except BaseException as error:
        folder.cleanup()
        if not isinstance(error, Exception):
            raise
        # each protocol raises its own errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SettingError(
            NAME, url, f"it cannot be fetched ({reason}); give a URL of a checkpoint, or a path"
        ) from error
    return Downloaded(folder, str(path))


def fetch(path: str) -> Downloaded:
    """Write a checkpoint from a URL or from the zoo into a temporary folder.

    Raises:
        SettingError: if the zoo has no checkpoint of that name, or as :func:`download`.
    """
    if not path.startswith(zoo.PREFIX):
        return download(path)
    try:
        name = path.removeprefix(zoo.PREFIX)
        content = zoo.checkpoint(name)
    except SettingError as error:
        raise SettingError(NAME, path, str(error).partition("; ")[2]) from error
    folder = tempfile.TemporaryDirectory(prefix="checkpoint-")
    file = Path(folder.name) / f"{name}.ckpt"
    torch.save(content, file)
    return Downloaded(folder, str(file))


def _copy(source: Any, target: Any) -> None:
    start, count = time.monotonic(), 0
    while chunk := getattr(source, "read1", source.read)(1 << 16):  # unlike read, read1 does not wait for all bytes
        count += target.write(chunk)
        seconds = time.monotonic() - start
        if seconds > SECONDS and count < SLOWEST * seconds:
            raise TimeoutError(f"{count} bytes in {seconds:.0f} seconds")


def _opened(url: str) -> Any:
    if url.startswith(("http://", "https://")):
        return urllib.request.urlopen(url, timeout=SECONDS)
    import fsspec

    return fsspec.open(url, "rb").open()


def find_by_word(word: str, root: Path, folder: Path) -> Path:
    """The newest checkpoint that ``last`` or ``hpc`` stands for.

    Args:
        word: ``last``, ``hpc`` or ``best``.
        root: the run's root folder, where Lightning writes a checkpoint before SLURM ends a job.
        folder: folder of this run's checkpoints.

    Raises:
        SettingError: if there is no such checkpoint (Lightning would use untrained weights), or if the word is
            ``best``.
    """
    require(word != "best", NAME, word, "only the run itself knows its best; give the path of that checkpoint")
    parent, pattern = {"last": (folder, "last*.ckpt"), "hpc": (root, "hpc_ckpt_*.ckpt")}[word]
    paths = sorted(parent.glob(pattern), key=lambda path: path.stat().st_mtime)
    require(len(paths) > 0, NAME, word, f"there is no {pattern} in {parent}; give the path of a checkpoint")
    return paths[-1]


def check(path: str, given: str, resumes: bool) -> None:
    """Check that a file is a checkpoint that fit wrote, with every entry that Lightning reads.

    Args:
        path: path of the file.
        given: path or URL that the user gave, for errors.
        resumes: whether a training resumes from it, which needs more than the weights.

    Raises:
        SettingError: if an entry is missing or malformed.
    """
    content = read_checkpoint(path, given)
    weights = "it holds the weights of a network alone; give it as --model.weights"
    require(not (content and _is_state(content)), NAME, given, weights)
    fits = isinstance(content, dict) and _is_state(content.get("state_dict"))
    require(fits, NAME, given, f"it holds no state_dict of tensors; {REMEDY}")
    missing = [name for name in _RESUMING if name not in content]
    of_zoo = f"the zoo has only weights; give --model.weights {given} to start from them"
    require(not (resumes and given.startswith(zoo.PREFIX)), NAME, given, of_zoo)
    remedy = f"it holds only weights; {REMEDY} with checkpoint.save_weights_only false"
    require(not (resumes and missing == [name for name in _RESUMING if name != "loops"]), NAME, given, remedy)
    missing = [name for name in _ALWAYS if name not in content] + (missing if resumes else [])
    require(not missing, NAME, given, f"it lacks {', '.join(missing)}; {REMEDY}")
    rules = {**_ALWAYS, **_RESUMING, **_OPTIONAL}
    wrong = [name for name, fits in rules.items() if name in content and not fits(content[name])]
    require(not wrong, NAME, given, f"its {', '.join(wrong)} is not what fit writes; {REMEDY}")
    described, states = content.get("optimizers"), content.get("optimizer_states")
    if resumes and described is not None:
        remedy = f"it has states of {len(states)} optimizers and settings of {len(described)}; {REMEDY}"
        require(len(described) == len(states), NAME, given, remedy)


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) and isinstance(w, Tensor) for name, w in value.items())


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _are_optimizers(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(state, dict) and isinstance(state.get("state"), dict) and _are_groups(state.get("param_groups"))
        for state in value
    )


def _are_groups(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(group, dict) and {"lr", "params"} <= group.keys() for group in value
    )


def _are_loops(value: Any) -> bool:
    fit = value.get("fit_loop") if isinstance(value, dict) else None
    return isinstance(fit, dict) and {"epoch_progress", "epoch_loop.batch_progress"} <= fit.keys()


def _are_dicts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, dict) and part for part in value)


def _is_version(value: Any) -> bool:
    try:
        Version(value)
    except (InvalidVersion, TypeError):
        return False
    return True


_ALWAYS: dict[str, Callable[[Any], bool]] = {
    "pytorch-lightning_version": _is_version,
    "epoch": _is_count,
    "global_step": _is_count,
    "method": lambda value: isinstance(value, str),
    "seed": lambda value: value is None or _is_count(value),
}
_RESUMING: dict[str, Callable[[Any], bool]] = {
    "loops": _are_loops,
    "callbacks": lambda value: isinstance(value, dict) and all(isinstance(part, dict) for part in value.values()),
    "optimizer_states": _are_optimizers,
    "lr_schedulers": _are_dicts,
}
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "optimizers": _are_dicts,
    "data": lambda value: isinstance(value, dict),
    "monitored": lambda value: isinstance(value, dict),
}
