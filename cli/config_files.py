"""Reads and writes YAML settings; duplicate keys and documents that would fill the memory are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import yaml
from jsonargparse import get_loader, set_dumper, set_loader
from jsonargparse.typing import register_type

from robust.errors import SettingError, require

MOST_BYTES = 4_000_000
MOST_NODES = 100_000
MOST_LEVELS = 100
LARGEST_SEED = 2**32 - 1
OF_RUNNERS = {
    "seed_everything": "give seeds",
    "trainer.default_root_dir": "give folder",
    "checkpoint.dirpath": "give folder",
    "ckpt_path": "leave it out",
    "trainer.logger": "leave it out",
    "test_after_fit": "leave it out",
}
_plain = get_loader("yaml")


class RefusedYAMLError(ValueError):
    """The error for YAML that is valid but refused.

    Args:
        text: the whole document.
        reason: the problem and its remedy.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"got {shorten(text, 80)!r}; {reason}")
        self.reason = reason


class _RefusalError(Exception):
    """The reason for a refusal, raised while the document is walked."""


def load(text: str) -> Any:
    """Parse a YAML document with jsonargparse's loader.

    Raises:
        YAMLError: if it is not valid YAML.
        RefusedYAMLError: if it gives a key twice, nests deeper than 100 levels, or has more than 100,000 values after
            expansion of its aliases.
    """
    try:
        check_levels(text)
        node = yaml.compose(text, Loader=yaml.CSafeLoader)
        if node is not None:
            count_values(node, {})
    except _RefusalError as error:
        raise RefusedYAMLError(text, str(error)) from None
    return _plain(text)


def require_free(name: str, setting: str, value: Any) -> None:
    """Refuse a setting that experiments and sweeps set themselves, so that a value would be ignored.

    Raises:
        SettingError: naming the remedy.
    """
    require(setting not in OF_RUNNERS, name, value, f"each run gets a value of its own; {OF_RUNNERS.get(setting)}")


def check_seeds(seeds: Any) -> None:
    """Check the list of seeds of experiments and sweeps.

    Raises:
        SettingError: if it is no list of different seeds.
    """
    fits = isinstance(seeds, list) and all(type(seed) is int and 0 <= seed <= LARGEST_SEED for seed in seeds)
    remedy = f"give a list of different whole numbers from 0 to {LARGEST_SEED}, such as [0, 1, 2]"
    require(fits and len(seeds) == len(set(seeds)) > 0, "seeds", seeds, remedy)


def load_settings(name: str, path: str, known: set[str], required: Sequence[str], example: str) -> dict[str, Any]:
    """The settings in a YAML file.

    Args:
        name: name of the file in errors.
        path: path of the file.
        known: settings that the file may have.
        required: settings that the file must have.
        example: path of an example, for errors.

    Raises:
        SettingError: if the file is absent, not valid YAML or not a mapping, or has unknown settings, or lacks one.
    """
    require(Path(path).is_file(), name, path, f"this is not a file; give a YAML file such as {example}")
    content = load_file(name, path)
    require(isinstance(content, dict), name, path, f"give a mapping with {', '.join(sorted(known))}")
    unknown = sorted(set(content) - known)
    require(not unknown, name, ", ".join(unknown), f"no such setting; give {', '.join(sorted(known))}")
    missing = [setting for setting in required if setting not in content]
    require(not missing, name, path, f"it lacks {', '.join(missing)}; add them")
    settings: dict[str, Any] = content
    return settings


def load_file(name: str, path: str | Path) -> Any:
    """Parse a YAML file.

    Args:
        name: name of the file in errors.
        path: path of the file.

    Raises:
        SettingError: if it is no YAML file, or one that :func:`load` refuses.
    """
    remedy = check_file(str(path))
    try:
        content = None if remedy else load(Path(path).read_text(encoding="utf-8"))
    except RefusedYAMLError as error:
        remedy = error.reason
    except yaml.YAMLError as error:
        remedy = f"give a YAML file of settings ({' '.join(str(error).split())})"
    if remedy:
        raise SettingError(name, str(path), remedy)
    return content


def check_levels(text: str) -> None:
    """Refuse a document that nests so deeply that it would exhaust the parser's stack."""
    level = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > MOST_LEVELS:
            raise _RefusalError(f"{_at(event)} nests deeper than {MOST_LEVELS} levels; use fewer levels")


def count_values(node: yaml.Node, counted: dict[int, int]) -> int:
    """Number of values in a node after expansion of its aliases.

    Args:
        node: node of a composed document, in which an alias is the node itself.
        counted: number of values of each visited node, by identity; 0 for the ancestors of ``node``.

    Raises:
        _RefusalError: if there are too many values, a node contains itself, or a key is given twice.
    """
    if id(node) in counted:
        if counted[id(node)] == 0:
            raise _RefusalError(f"{_at(node)} contains itself; write its values out")
        return counted[id(node)]
    counted[id(node)] = 0
    number = 1
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        number += sum(count_values(part, counted) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        number += sum(count_values(part, counted) for part in node.value)
    if number > MOST_NODES:
        raise _RefusalError(f"{_at(node)} has more than {MOST_NODES:,} values with its aliases; use fewer")
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


def _at(marked: Any) -> str:
    return f"the value in line {marked.start_mark.line + 1}"


def check_file(path: str) -> str | None:
    """Problem and remedy of a config file that cannot be read; None if it can be read, or does not exist."""
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


class _Dumper(yaml.CSafeDumper):
    """Writes objects that are not plain values, such as a device, as text."""


_Dumper.add_multi_representer(object, lambda dumper, value: dumper.represent_str(str(value)))


def dump(settings: Any) -> str:
    """Settings as YAML."""
    text: str = yaml.dump(settings, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)
    return text


set_loader("yaml", load, (yaml.YAMLError,))
set_dumper("yaml", dump)
register_type(torch.device, fail_already_registered=False)


def as_argument(name: str, value: Any) -> str:
    """A setting as an argument of ``train.py``.

    >>> as_argument("model.form", "inverse"), as_argument("trainer.logger", False)
    ('--model.form=inverse', '--trainer.logger=false')
    """
    return f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
