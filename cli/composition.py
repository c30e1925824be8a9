"""Composition of config files: a file names others under ``config``, and its own settings override theirs."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml

from cli.config_files import RefusedYAMLError, check_file, load, load_file
from cli.user_modules import add_folder
from robust.errors import require

KEY = "config"
GROUPS = ("trainer", "checkpoint", "epsilon_schedule")  # of settings that belong to no class_path
SECTIONS = ("init_args", "dict_kwargs")
Settings = dict[str, Any]


def composed(settings: Settings, folder: Path, inside: tuple[Path, ...] = ()) -> Settings:
    """Merge the files that settings name under ``config``, in their order, and then the settings themselves.

    Mappings merge at every level; lists and plain values replace the previous value. If the class changes, all settings
    of the previous class are dropped: Adam does not take the learning rate that was given to SGD.

    Args:
        settings: settings in a config file.
        folder: folder of this file; paths in the settings are relative to it.
        inside: files that led to this one, by which a file that names itself is found.

    Raises:
        SettingError: if ``config`` does not name YAML files, a value is given twice, or a group is no mapping.
    """
    files = settings[KEY] if isinstance(settings.get(KEY), list) else [settings[KEY]] if KEY in settings else []
    result: Settings = {}
    for file in files:
        require(isinstance(file, str), KEY, file, "give the path of a YAML file of settings, or a list of such paths")
        result = merged(result, _read(folder / file, inside))
    own = {key: value for key, value in settings.items() if key != KEY}
    own = expanded(_with_files(own, folder, section=True))
    check_groups(own)
    result.update(merged(result, own))
    return result


def check_groups(settings: Settings) -> None:
    """Check that each given group of settings is a mapping: another value would drop the settings of earlier files.

    Raises:
        SettingError: at the first that is not.
    """
    for name in GROUPS:
        given = settings.get(name, {})
        require(isinstance(given, dict), name, given, "give its settings by their names, as a mapping")


def content(files: list[str]) -> Any:
    """The settings in config files and in the files that these name, as plain data for a comparison.

    Raises:
        SettingError: if a file cannot be read.
    """
    return json.loads(json.dumps(composed({KEY: files}, Path.cwd()), default=str))


def _read(path: Path, inside: tuple[Path, ...]) -> Settings:
    """The composed settings in a file."""
    path = path.resolve()
    require(path not in inside, KEY, str(path), "this file names itself; remove it from the list of files")
    require(path.is_file(), KEY, str(path), "this is not a file; give the path of a YAML file")
    settings = load_file(KEY, path)
    require(isinstance(settings, dict), KEY, str(path), "give a YAML file of settings")
    add_folder(path.parent)
    return composed(settings, path.parent, (*inside, path))


def _with_files(value: Any, folder: Path, section: bool = False) -> Any:
    """Replace the path of a file that holds a class, or a list of classes, by the settings in the file.

    Args:
        value: value of a setting.
        folder: folder of the file with this setting; paths are relative to it.
        section: whether the setting is a section, such as ``trainer: quick.yaml``, whose file need not name a class.
    """
    if isinstance(value, dict):
        return {key: _with_file(part, folder, section) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_file(part, folder) for part in value]
    return value


def _with_file(value: Any, folder: Path, section: bool = False) -> Any:
    path = folder / value if isinstance(value, str) and value.endswith((".yaml", ".yml")) else None
    if path and path.is_file() and not check_file(str(path)):
        with suppress(RefusedYAMLError, yaml.YAMLError):  # the parser reports the error
            content = load(path.read_text(encoding="utf-8"))
            if _is_class(content) or (section and isinstance(content, dict)):
                return _with_files(content, path.parent)
    return _with_files(value, folder)


def _is_class(content: Any) -> bool:
    if isinstance(content, list):
        return all(isinstance(part, dict) and "class_path" in part for part in content)
    return isinstance(content, dict) and "class_path" in content


def merged(before: Any, after: Any, name: str = "") -> Any:
    """Merge a later value into an earlier one: mappings merge, unless their classes differ; other values are replaced.

    Args:
        before: value in the earlier files.
        after: value in the file itself.
        name: full name of the setting.

    Raises:
        SettingError: if ``after`` names a class and ``before`` has settings but names none.
    """
    if isinstance(before, str) and isinstance(after, dict):
        before = {"class_path": before}
    if isinstance(after, str) and isinstance(before, dict) and "class_path" in before:
        after = {"class_path": after}
    if not isinstance(after, dict):
        return after
    before = before if isinstance(before, dict) else {}
    if "class_path" in after and before:
        require(
            "class_path" in before,
            name,
            after["class_path"],
            "an earlier file gives settings without a class; name the class there",
        )
        before = before if _same_class(before["class_path"], after["class_path"]) else {}
    if any(key in part for part in (before, after) for key in ("class_path", *SECTIONS)):
        before, after = _in_sections(before, name), _in_sections(after, name)
    result = dict(before)
    for key, value in sorted(after.items(), key=lambda item: str(item[0]).endswith("+")):
        _set(result, key, value, name if key == "init_args" else f"{name}.{key}".lstrip("."))
    return result


def _set(result: Settings, key: Any, value: Any, name: str) -> None:
    """Merge a setting into earlier ones; ``callbacks+`` appends to ``callbacks``, or to an earlier ``callbacks+``."""
    if not str(key).endswith("+"):
        result[key] = merged(result.get(key), value, name)
        result.pop(f"{key}+", None)
        return
    target = key[:-1] if key[:-1] in result else key
    result[target] = [*_listed(result.get(target)), *_listed(value)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _in_sections(settings: Settings, name: str) -> Settings:
    """Put settings of a class that another file names inside ``init_args``.

    Settings beside a ``class_path`` stay where they are, so that the parser reports them.

    Raises:
        SettingError: if ``init_args`` is no mapping, or a setting is given both in it and beside it.
    """
    inside = settings.get("init_args") or {}
    require(isinstance(inside, dict), f"{name}.init_args", inside, "give the settings of the class by their names")
    own = {key: value for key, value in settings.items() if key not in SECTIONS}
    if "class_path" in settings or not own:
        return settings
    for key in sorted(own):
        require(key not in inside, f"{name}.{key}", own[key], "init_args gives it, too: give it once")
    rest = {key: value for key, value in settings.items() if key in SECTIONS}
    return {**rest, "init_args": {**inside, **own}}


def _same_class(one: str, other: str) -> bool:
    """Whether two names mean one class; a name without a module is compared with the last part of the other's path."""
    if "." in one and "." in other:
        try:
            return resolve_name(one) is resolve_name(other)
        except (ImportError, AttributeError, ValueError):
            return one == other
    return one.split(".")[-1] == other.split(".")[-1]


def expanded(settings: Settings) -> Settings:
    """Turn dotted keys into nested mappings, with the settings of a class inside its ``init_args``.

    Raises:
        SettingError: if a value is given twice, once by a dotted key.
    """
    result: Settings = {}
    for key, value in sorted(settings.items(), key=_depth):
        *path, name = str(key).split(".") if isinstance(key, str) else [key]
        _put(_parent(result, path, name), name, value, str(key))
    return result


def _depth(item: tuple[Any, Any]) -> tuple[int, bool]:
    """Sort key: mappings come before the dotted keys that go into them, and a class before its settings."""
    key = str(item[0])
    return key.count("."), not key.endswith(".class_path")


def _parent(settings: Settings, path: list[str], name: str) -> Settings:
    """The mapping for ``name`` at a path, created where it does not exist."""
    for step in path:
        settings = _section(settings, step)
        child = settings.get(step)
        if not isinstance(child, dict):
            child = {} if child is None else {"class_path": child}
        settings[step] = dict(child)  # a copy, since a YAML anchor may share the mapping
        settings = settings[step]
    return _section(settings, name)


def _section(settings: Settings, name: str) -> Settings:
    """The mapping to which a setting of that name belongs: the ``init_args`` of a class, else ``settings`` itself."""
    if "class_path" not in settings or name in ("class_path", *SECTIONS):
        return settings
    settings["init_args"] = dict(settings.get("init_args") or {})
    arguments: Settings = settings["init_args"]
    return arguments


def _put(settings: Settings, name: Any, value: Any, key: str) -> None:
    before = settings.get(name)
    if isinstance(before, dict) and isinstance(value, dict):
        settings[name] = dict(before)
        for part, inner in value.items():
            _put(settings[name], part, inner, f"{key}.{part}")
    else:
        require(name not in settings, key, value, "this file gives it twice, once by a dotted key: give it once")
        settings[name] = value
