"""A config file that names others under ``config``: those come first, and its own settings change theirs."""

from __future__ import annotations

from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]

from cli.config_files import dump
from robust.errors import require

KEY = "config"
SECTIONS = ("init_args", "dict_kwargs")


def expanded(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with dotted keys as nested mappings, those of a class inside its ``init_args``.

    A dotted key into a file's settings, such as ``classifier.width`` where ``classifier`` is a path, stays behind them.

    Raises:
        SettingError: if a value is given twice, once by a dotted key.
    """
    result: dict[str, Any] = {}
    for key, value in sorted(settings.items(), key=_depth):
        *path, name = str(key).split(".") if isinstance(key, str) else [key]
        parent = _parent(result, path, name)
        _put(result if parent is None else parent, key if parent is None else name, value, str(key))
    return result


def _depth(item: tuple[Any, Any]) -> tuple[int, bool]:
    """Mappings before the dotted keys that go into them, and a class before its settings."""
    key = str(item[0])
    return key.count("."), not key.endswith(".class_path")


def _parent(settings: dict[str, Any], path: list[str], name: str) -> dict[str, Any] | None:
    """The mapping at a path, made of what is there, that is to hold ``name``; None where a file is on the path."""
    for step in path:
        settings = _section(settings, step)
        child = settings.get(step)
        if isinstance(child, str) and child.endswith((".yaml", ".yml")):
            return None
        if not isinstance(child, dict):
            child = {} if child is None else {"class_path": child}
        settings[step] = dict(child)  # a copy, as a YAML anchor may share it
        settings = settings[step]
    return _section(settings, name)


def _section(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """Where a setting of that name belongs: in the ``init_args`` of a class, else in the mapping itself."""
    if "class_path" not in settings or name in ("class_path", *SECTIONS):
        return settings
    settings["init_args"] = dict(settings.get("init_args") or {})
    arguments: dict[str, Any] = settings["init_args"]
    return arguments


def _put(settings: dict[str, Any], name: Any, value: Any, key: str) -> None:
    before = settings.get(name)
    if isinstance(before, dict) and isinstance(value, dict):
        settings[name] = dict(before)
        for part, inner in value.items():
            _put(settings[name], part, inner, f"{key}.{part}")
    else:
        require(name not in settings, key, value, "this file gives it twice, once by a dotted key: give it once")
        settings[name] = value


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
            for section in SECTIONS:
                kept[key].pop(section, None)
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
