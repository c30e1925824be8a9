"""A config file that names others under ``config``: those come first, and its own settings change theirs."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse._actions import ActionConfigFile

from cli.config_files import dump
from robust.errors import require

KEY = "config"


def compose(parser: ArgumentParser, settings: dict[str, Any], previous: Namespace | None) -> Namespace:
    """Merge the files that settings name under ``config``, one behind the other, and the settings behind them.

    Mappings merge at every level; lists and plain values replace what was there. A class that another class replaces
    takes its settings with it: the learning rate of SGD is none for Adam.

    Args:
        parser: of the command line; it reads the files, and paths are relative to the folder it is in.
        settings: of a config file; ``config`` holds a path or a list of paths.
        previous: settings of the config files before this one; ``callbacks+`` adds to theirs.

    Raises:
        SettingError: if ``config`` holds no path.
    """
    files = settings[KEY] if isinstance(settings[KEY], list) else [settings[KEY]]
    for file in files:
        require(isinstance(file, str), KEY, file, "give the path of a YAML file of settings, or a list of such paths")
    composed = previous.clone() if previous else Namespace()  # type: ignore[no-untyped-call]
    own = {key: value for key, value in settings.items() if key != KEY}
    for part in [*files, dump(own)]:
        before = composed.clone()
        ActionConfigFile.apply_config(parser, composed, KEY, part)
        if drop_replaced(before, composed):
            ActionConfigFile.apply_config(parser, before, KEY, part)
            composed = before
    composed.pop(KEY)
    return composed


def drop_replaced(before: Namespace, after: Namespace) -> bool:
    """Remove the settings of those classes that are others afterwards, in place; whether there were any."""
    replaced = False
    for key, value in list(before.items(branches=True)):
        if _class(value) not in (None, _class(after.get(key))) and value.pop("init_args", None):
            replaced = True
    return replaced


def _class(value: Any) -> Any:
    return value.get("class_path") if isinstance(value, Namespace) else None
