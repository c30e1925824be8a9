"""Messages about settings that do not exist, with the one that was probably meant."""

from __future__ import annotations

import difflib
import re
from textwrap import shorten
from typing import Any

from jsonargparse import Namespace

# names that other programs have for our settings
MEANT = {"lr": "optimizer.lr", "learning_rate": "optimizer.lr"}
MEANT |= {name: f"optimizer.{name}" for name in ("momentum", "weight_decay")} | {"seed": "seed_everything"}
# settings that are looked for in another section than their own, by the last part of their names
ELSEWHERE = {"epochs": "trainer.max_epochs", "max_epochs": "trainer.max_epochs", "batch_size": "data.batch_size"}
ELSEWHERE |= {"epsilon": "model.epsilon", "devices": "trainer.devices"}


def unknown_setting(parser: Any, name: str, value: object) -> str:
    """Message about an unknown setting, with the nearest known one."""
    if name in ("class_path", "init_args"):
        return f"{name}: got {shorten(str(value), 80)!r}; settings beside it belong inside init_args"
    known = _known(parser)
    meant = _meant(name, known)
    all_known = ", ".join(known) if len(known) < 20 else f"train.py {getattr(parser, 'subcommand', 'fit')} --help"
    remedy = f"did you mean {meant}?" if meant else f"see {all_known}"
    if not known:  # the base class of a list, such as Callback: the entry names no class of its own
        remedy = "give class_path, and its settings inside init_args"
    elif re.match(r"(\d+|[A-Z]\w*)\.", name):  # another entry of a list, by its index or class
        remedy = "names reach the last entry of a list only; give the list in a config file"
    elif meant is None and name in ELSEWHERE and name not in known:
        remedy = f"give it as {ELSEWHERE[name]}"
    printed = shorten(str(value.as_dict()), 80) if isinstance(value, Namespace) else repr(value)
    return f"{name}: got {printed}; no such setting, {remedy}"


def unknown_section(parser: Any, name: str) -> str:
    """The first part of an unknown setting's name that is not known, such as ``models`` of ``models.class_path``."""
    known, parts = _known(parser), name.split(".")
    sections = [".".join(parts[:count]) for count in range(1, len(parts))]
    return next((s for s in sections if not any(f"{other}.".startswith(f"{s}.") for other in known)), name)


def unnamed_value(value: str) -> str:
    """Message about a value on the command line without the name of its setting."""
    names = {".ckpt": "ckpt_path", ".yaml": "config", ".yml": "config"}
    ending = next((ending for ending in names if value.endswith(ending)), None)
    remedy = f"give it as --{names[ending]} {value}" if ending else "give each setting as --name value"
    return f"arguments: got {value!r}; it has no name; {remedy}"


def _known(parser: Any) -> list[str]:
    return [action.dest for action in parser._actions if not re.search("help$|^print_", action.dest)]


def _meant(name: str, known: list[str]) -> str | None:
    """The known setting that is nearest to an unknown one."""
    if name in MEANT and MEANT[name].split(".")[0] in known:
        return MEANT[name]
    elsewhere = ELSEWHERE.get(name.rpartition(".")[2])
    if elsewhere and any(other.startswith("trainer.") for other in known):  # the parser of all settings
        return elsewhere
    near = difflib.get_close_matches(name, [other for other in known if not name.startswith(f"{other}.")], 1, 0.75)
    if near:
        return near[0]
    first, *rest = name.split(".")
    sections = {other.split(".")[0] for other in known} - {first}
    near = difflib.get_close_matches(first, sorted(sections), 1, 0.75)
    return ".".join([near[0], *rest]) if near else None
