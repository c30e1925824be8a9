"""YAML of settings: duplicate keys, and documents that would fill the memory, are errors; any default is written."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import yaml
from jsonargparse import get_loader, set_dumper, set_loader
from jsonargparse.typing import register_type

MOST_BYTES = 4_000_000
MOST_NODES = 100_000
MOST_LEVELS = 100
_plain = get_loader("yaml")


class RefusedYAMLError(ValueError):
    """YAML that can be parsed, and is not taken.

    Args:
        text: all of it.
        reason: what is wrong with it, and the remedy.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"got {shorten(text, 80)!r}; {reason}")
        self.reason = reason


class _RefusalError(Exception):
    """Why YAML is not taken, from the depths of it."""


def load(text: str) -> Any:
    """What a YAML document says, as jsonargparse reads it.

    Raises:
        YAMLError: if it is none.
        RefusedYAMLError: if it gives a key twice, nests deeper than 100 levels, or has more than 100,000 values when
            its aliases are written out.
    """
    try:
        check_levels(text)
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
        if node is not None:
            count_values(node, {})
    except _RefusalError as error:
        raise RefusedYAMLError(text, str(error)) from None
    return _plain(text)


def check_levels(text: str) -> None:
    """Refuse what nests deeper than the parser's stack."""
    level = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > MOST_LEVELS:
            raise _RefusalError(f"{_at(event)} nests deeper than {MOST_LEVELS} levels; write it flatter")


def count_values(node: yaml.Node, counted: dict[int, int]) -> int:
    """Number of values in a node with its aliases written out.

    Args:
        node: of a composed document, in which an alias is the node itself.
        counted: the numbers of the nodes that are done, by identity; 0 in those that hold the one that is counted.

    Raises:
        _RefusalError: if they are too many, one holds itself, or a key is given twice.
    """
    if id(node) in counted:
        if counted[id(node)] == 0:
            raise _RefusalError(f"{_at(node)} holds itself; write the values out")
        return counted[id(node)]
    counted[id(node)] = 0
    number = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        number += sum(count_values(part, counted) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        number += sum(count_values(part, counted) for part in node.value)
    if number > MOST_NODES:
        raise _RefusalError(f"{_at(node)} has more than {MOST_NODES:,} values with its aliases; write less")
    counted[id(node)] = number
    return number


def _check_keys(node: yaml.MappingNode) -> None:
    first: dict[Any, yaml.Node] = {}
    for key, _ in node.value:
        if key.value != "<<" and isinstance(key, yaml.ScalarNode):
            if key.value in first:
                lines = sorted({_line(first[key.value]), _line(key)})
                where = f"in line {' and '.join(map(str, lines))}"
                raise _RefusalError(f"{key.value!r} is given twice, {where}; keep one of them")
            first[key.value] = key


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _at(place: Any) -> str:
    return f"the value in line {place.start_mark.line + 1}"


def check_file(path: str) -> str | None:
    """What is wrong with a config file before it is parsed, as a remedy; None where nothing is, or it is not there."""
    file = Path(path)
    try:
        if not file.is_file():
            return None
        if file.stat().st_size > MOST_BYTES:
            return f"it has more than {MOST_BYTES:,} bytes; give a YAML file of settings"
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return "it is not in UTF-8; save it as UTF-8, without other encodings such as UTF-16"
    except OSError as error:
        return f"it cannot be read ({error.strerror}); give a YAML file of settings"
    return None


class _Dumper(yaml.SafeDumper):
    """Writes a default that is no plain value, such as a device, as its text."""


_Dumper.add_multi_representer(object, lambda dumper, value: dumper.represent_str(str(value)))


def dump(settings: Any) -> str:
    """Settings as YAML."""
    text: str = yaml.dump(settings, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)
    return text


set_loader("yaml", load, (yaml.YAMLError,))
set_dumper("yaml", dump)
register_type(torch.device, fail_already_registered=False)
