"""The settings of a checkpoint's model, which evaluations start from."""

from __future__ import annotations

from typing import Any

from robust.checkpoints import read_saved
from robust.errors import require

NAME = "ckpt_path"
_REMEDY = "give a checkpoint that fit wrote"
_CONFIG = "give the config of its training before it: --config FILE (config.yaml in the run's folder)"


def path_in(arguments: list[str]) -> str | None:
    """Path of the checkpoint on a command line; None if there is none."""
    found = None
    for index, argument in enumerate(arguments):
        if argument == f"--{NAME}" and index + 1 < len(arguments):
            found = arguments[index + 1]
        elif argument.startswith(f"--{NAME}="):
            found = argument.partition("=")[2]
    return found


def gives_model(arguments: list[str]) -> bool:
    """Whether a command line has a model or a config file, which may have one."""
    return any(argument.partition("=")[0] in ("--model", "--config") for argument in arguments)


def read_model(path: str, given: str, *, needed: bool) -> dict[str, Any] | None:
    """``class_path`` and ``init_args`` of a checkpoint's model; None if the checkpoint has no complete ones.

    Args:
        path: path of the file.
        given: path or URL that the user gave, for errors.
        needed: whether the command line has no other model.

    Raises:
        SettingError: if the file cannot be read, or has no complete settings and these are needed.
    """
    content = read_saved(path, NAME, _REMEDY, given=given)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("init_args"), dict):
        is_checkpoint = isinstance(content, dict) and "state_dict" in content
        require(not (needed and is_checkpoint), NAME, given, f"it holds no settings of its model; {_CONFIG}")
        return None
    objects = model.get("objects", [])
    remedy = f"its model was built in Python, its settings lack {', '.join(objects)}; {_CONFIG}"
    require(not (needed and objects), NAME, given, remedy)
    return None if objects else {"class_path": model.get("class_path"), "init_args": model["init_args"]}
