"""The settings of a checkpoint's model, with which an evaluation starts."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from cli.user_code import import_or_explain
from cli.user_modules import add_folder
from robust.checkpoints import read_saved
from robust.errors import SettingError, require

NAME = "ckpt_path"
REMEDY = "give a checkpoint that fit wrote"
_CONFIG = "give the config of its training before it: --config FILE (config.yaml in the run's folder)"


def values_of(arguments: list[str], *options: str) -> list[str]:
    """Values of options on a command line, ``--name value`` or ``--name=value``."""
    values = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, value = argument.partition("=")
        if name in options:
            values.append(value if equals else following)
    return values


def importable(model: dict[str, Any], path: str, configs: list[str]) -> dict[str, Any]:
    """Return the settings of a checkpoint's model after a check that its class can be imported.

    Args:
        model: settings of the model.
        path: path or URL of the checkpoint, for errors.
        configs: paths of the config files; the class may be in a module beside one of them.

    Raises:
        SettingError: if the class cannot be imported.
    """
    for config in configs:
        if Path(config).is_file():
            add_folder(Path(config).resolve().parent)
    try:
        import_or_explain(model["class_path"])
    except (ImportError, AttributeError, ValueError) as error:
        remedy = "run train.py in the folder of its module, or give a config file beside the module"
        reason = f"its model {model['class_path']} cannot be imported ({error}); {remedy}"
        raise SettingError(NAME, path, reason) from error
    return model


def read_checkpoint(path: str, given: str) -> Any:
    """The content of a checkpoint, read as data.

    Args:
        path: path of the file.
        given: path or URL that the user gave, for errors.

    Raises:
        SettingError: if it is a folder, or cannot be read.
    """
    folder = Path(path)
    if folder.is_dir():
        last = next((file for place in ("", "checkpoints") if (file := folder / place / "last.ckpt").is_file()), None)
        raise SettingError(NAME, given, f"it is a folder; {f'give {last}' if last else REMEDY}")
    return read_saved(path, NAME, REMEDY, given=given)


def read_model(path: str, given: str, *, needed: bool) -> dict[str, Any] | None:
    """``class_path`` and ``init_args`` of a checkpoint's model; None if the checkpoint has no complete ones.

    Args:
        path: path of the file.
        given: path or URL that the user gave, for errors.
        needed: whether the command line gives no other model.

    Raises:
        SettingError: if the file cannot be read, or if its settings are needed but incomplete.
    """
    content = read_checkpoint(path, given)
    model: Any = content.get("model") if isinstance(content, dict) else None
    parts = (model.get("class_path"), model.get("init_args")) if isinstance(model, dict) else (None, None)
    if not isinstance(parts[0], str) or not isinstance(parts[1], dict):
        is_checkpoint = isinstance(content, dict) and "state_dict" in content
        require(not (needed and is_checkpoint), NAME, given, f"it holds no settings of its model; {_CONFIG}")
        return None
    objects = model.get("objects", [])
    remedy = f"its model was built in Python, so its settings lack {', '.join(objects)}; {_CONFIG}"
    require(not (needed and objects), NAME, given, remedy)
    return None if objects else {"class_path": model["class_path"], "init_args": model["init_args"]}
