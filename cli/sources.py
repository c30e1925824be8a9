"""The source of each setting: the command line, a config file, or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

SECTIONS = ("init_args", "dict_kwargs")


def sources_of(config: dict[str, Any], given: dict[str, list[tuple[str, Any]]]) -> dict[str, list[str]]:
    """Full names, without ``init_args``, of the settings from each source; all other settings have their defaults.

    Args:
        config: all settings as plain dicts and lists.
        given: names and values of the settings that each source gives; the first source that gives a setting counts.
    """
    names = known = [name for name, _ in settings_in(config)]
    sources: dict[str, list[str]] = {}
    for source, settings in given.items():
        covering = {_covered(name, value, known) for name, value in settings}
        sources[source] = [n for n in names if any(n == other or n.startswith(f"{other}.") for other in covering)]
        names = [name for name in names if name not in sources[source]]
    return sources


def settings_in(settings: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Name and value of each setting that is not a mapping."""
    if not isinstance(settings, dict) or not settings:
        yield name, settings
        return
    for key, value in settings.items():
        yield from settings_in(value, ".".join(part for part in (name, plain_name(str(key))) if part))


def settings_in_arguments(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """Name and value of each setting on a command line, given as ``--name=value`` or as ``--name value``."""
    settings = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            settings.append((plain_name(name), value if equals or following.startswith("--") else following))
    return [(name, value) for name, value in settings if name != "config"]


def plain_name(name: str) -> str:
    """Name of a setting without ``init_args`` and without the ``+`` of lists."""
    return ".".join(part for part in name.removesuffix("+").split(".") if part not in SECTIONS)


def _covered(name: str, value: Any, names: list[str]) -> str:
    """Name of the setting that a value sets; the name of a class sets only the ``class_path``, not its settings."""
    of_class = f"{name}.class_path" in names and not str(value).startswith("{")
    return f"{name}.class_path" if of_class and not str(value).endswith((".yaml", ".yml")) else name
