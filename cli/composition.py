"""A config file that names others under ``config``: those come first, and its own settings change theirs."""

from __future__ import annotations

from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from cli.config_files import dump
from robust.errors import require

KEY = "config"


def ordered(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with dotted keys behind the mappings that they go into, which would replace them otherwise."""
    return dict(sorted(settings.items(), key=lambda item: str(item[0]).count(".")))


def compose(parser: ArgumentParser, settings: dict[str, Any], previous: Namespace | None) -> Namespace:
    """Merge the files that settings name under ``config``, one behind the other, and the settings behind them.

    Mappings merge at every level; lists and plain values replace what was there. Another class keeps nothing that was
    given to the class before: the learning rate of SGD is none for Adam.

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
    for part in [*files, dump({key: value for key, value in settings.items() if key != KEY})]:
        composed = _behind(parser, composed, part)
    composed.pop(KEY)
    return composed


def _behind(parser: ArgumentParser, before: Namespace, part: str) -> Namespace:
    """Settings of a file, or of YAML, behind others, of which the classes and lists that it replaces leave nothing.

    jsonargparse hands the settings of a class on to the next class and, in lists of one length, to the next element.
    Only what it makes of the file tells what is replaced, so the file is applied again to what is kept.
    """
    after = _applied(parser, before, part)
    kept, lists = before.clone(), {}
    for key, value in before.items(branches=True):
        later = after.get(key)
        if key in kept and _class(value) not in (None, _class(later)):
            kept[key].pop("init_args", None)
        elif key in kept and isinstance(value, list) and isinstance(later, list) and len(value) == len(later):
            lists[key] = kept.pop(key)
    if kept != before:
        after = _applied(parser, kept, part)
        for key, value in lists.items():
            after[key] = after.get(key, value)
    return after


def _applied(parser: ArgumentParser, before: Namespace, part: str) -> Namespace:
    after = before.clone()
    ActionConfigFile.apply_config(parser, after, KEY, part)
    return after


def _class(value: Any) -> Any:
    return value.get("class_path") if isinstance(value, Namespace) else None
