"""One-line errors for wrong settings, instead of jsonargparse's list of attempts and hundreds of lines of usage."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from textwrap import shorten
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser

import callbacks
import datamodules
import lightning_modules
from cli import class_changes, composition, function_settings, help, user_code
from cli.config_files import RefusedYAMLError, check_file, dump, load
from cli.sources import settings_in
from cli.user_modules import add_folder
from robust import attacks, bounds, networks
from robust.errors import SettingError, require

CLASSES = {
    name: f"{package.__name__}.{name}"
    for package in (lightning_modules, datamodules, callbacks, networks, bounds, attacks)
    for name in package.__all__
}
KINDS = {"bool": "true or false", "float": "a number", "int": "a whole number", "list": "a list", "NoneType": "null"}

CLASS_ERRORS = [
    (rf"'(\S+)'; ({user_code.IMPORTS} .*)", "{1}"),
    (
        r"Not a valid subclass of \w+\. Got value: (.*?)\s*(?:Subclass types|$)",
        "give class_path, and its settings inside init_args",
    ),
    (r"Import path (\S+) does not correspond to a subclass of (\w+)", "it is not a {1}; give one"),
    (r"Expected '(\S+)' to be a subclass of (.+?)\.?$", "it is not one of {1}; give one"),
    (r"Expected an instantiatable class, but (\S+) is abstract", "it is abstract; give a class that derives from it"),
    (r"Unexpected import path format: (.*)", "give an import path, such as package.module.Class"),
    (r"Expected a dot import path string:\s*()$", "give its import path, such as package.module.Class"),
    (r"Path is not a file: '(.*)'", "this is not a file; give the path of a YAML file"),
    (r"(.*codec can't decode.*)", "the file is not text in UTF-8; give a YAML file or a class"),
]


class OneLineParser(LightningArgumentParser):
    """Reports a wrong setting in one line: its full name, its value and the remedy.

    It does not accept abbreviated names, since a new setting could make them ambiguous.

    Attributes:
        read_settings: names and values of the settings in all config files that were read.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        class_changes.install()
        user_code.install()
        function_settings.install()
        help.install()
        super().__init__(*args, **kwargs, allow_abbrev=False)
        self._reading = ""
        self.read_settings: list[tuple[str, Any]] = []

    def format_help(self) -> str:  # type: ignore[override]
        """The help, after an example if it lists the subcommands."""
        text: str = super().format_help()
        return help.EXAMPLE + text if self._subparsers is not None else text

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Read a config file, store its path for errors that do not name it, and let modules beside it be imported."""
        self._reading = str(path)
        if remedy := check_file(self._reading):
            raise SettingError("config", self._reading, remedy)
        if (file := Path(self._reading)).is_file():
            add_folder(file.resolve().parent)
        try:
            return super().parse_path(path, *args, **kwargs)
        except RefusedYAMLError as error:
            raise SettingError("config", self._reading, error.reason) from None

    def _load_config_parser_mode(
        self, content: str, path: Any = "", ext_vars: Any = None, prev_cfg: Namespace | None = None
    ) -> Namespace:
        """Read a config file's settings, after those of the files that it names under ``config``."""
        with suppress(yaml.YAMLError):  # the parser reports the error
            settings = load(content)
            if isinstance(settings, dict):
                settings = composition.composed(settings, Path.cwd())  # the parser has changed to the file's folder
                self.read_settings += settings_in(settings)
                content = dump(settings)
        return super()._load_config_parser_mode(content, path, ext_vars, prev_cfg)

    def validate(self, namespace: Any, *args: Any, **kwargs: Any) -> None:
        """Validate, and add the value and the nearest known setting to an error about an unknown one."""
        try:
            super().validate(namespace, *args, **kwargs)
        except KeyError as error:
            if match := re.search(r"ption '([^']+)' is not accepted$|does not accept option '([^']+)'$", str(error)):
                name = match[1] or match[2]
                value = namespace.get(name, namespace.get(f"{namespace.get('subcommand')}.{name}"))
                error.args = (unknown_setting(getattr(error, "subcommand_parser", self), name, value),)
            raise

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the cause and exit with status 2."""
        if unknown := re.match(r"unrecognized arguments: --([^ =]+)[ =]?(.*?)(?= --|$)", message):
            message = unknown_setting(self, unknown[1], unknown[2])
        elif message.startswith(("Problems parsing config", "Unexpected config", "Key must be a string")):
            message = f"config: got {self._reading!r}; give a YAML file of settings ({message})"
        if not self.exit_on_error:  # a parser of one class's settings; the outer parser adds the full name
            super().error(message, ex)
        sys.stderr.write(f"error: {' '.join(explain(message, ex).split())}\n")
        sys.exit(2)


def unknown_setting(parser: LightningArgumentParser, name: str, value: object) -> str:
    """Message about an unknown setting, with the nearest known one."""
    if name in ("class_path", "init_args"):
        return f"{name}: got {shorten(str(value), 80)!r}; settings beside it belong inside init_args"
    known = [action.dest for action in parser._actions if not re.search("help$|^print_", action.dest)]
    near = difflib.get_close_matches(name, [other for other in known if not name.startswith(f"{other}.")], 1, 0.75)
    all_known = ", ".join(known) if len(known) < 20 else f"train.py {getattr(parser, 'subcommand', 'fit')} --help"
    return f"{name}: got {value!r}; no such setting, " + (f"did you mean {near[0]}?" if near else f"see {all_known}")


def explain(message: str, error: Exception | None) -> str:
    """Setting, value and remedy from jsonargparse's error, which wraps one error per level of nesting."""
    chain = list(causes(error))
    levels = [str(cause) for cause in chain if isinstance(cause, TypeError) and str(cause).startswith("Parser key")]
    path = "".join(level.split('"')[1] + "." for level in levels)
    root = str(chain[-1]) if chain else message
    if re.search("; no such setting, |; settings beside it", root):
        return path + root.replace("did you mean ", f"did you mean {path}")
    if missing := re.search("arguments are required: (.*)", root):
        wanted = [path + name.split(".")[-1] for name in missing[1].split(", ")]
        return f"{', '.join(wanted)}: not given; put it in the config file or add --{wanted[0]}"
    return f"{path[:-1]}: {value_and_remedy(levels[-1], root)}" if levels else message


def refuse_null(config: Any, name: str) -> None:
    """Refuse null, which jsonargparse accepts, for settings whose type does not include None.

    Args:
        config: settings as plain dicts and lists.
        name: full name of ``config``.

    Raises:
        SettingError: at the first such null.
    """
    if isinstance(config, list):
        for index, part in enumerate(config):
            refuse_null(part, f"{name}.{index}")
    if not isinstance(config, dict) or "class_path" not in config:
        return
    hints = types_of_settings(config["class_path"])
    for setting, value in config.get("init_args", {}).items():
        hint = hints.get(setting, Any)
        nullable = hint is Any or NoneType in (hint, *get_args(hint))
        kind = KINDS.get(getattr(hint, "__name__", ""), "a value")
        require(value is not None or nullable, f"{name}.{setting}", value, f"give {kind}")
        refuse_null(value, f"{name}.{setting}")


def types_of_settings(path: str) -> dict[str, Any]:
    """Types of the settings of a function or class, including those that constructors pass to their bases.

    The most derived constructor decides the type of a setting. Types that only type checkers import are skipped.
    """
    given = resolve_name(path)
    kinds = given.__mro__ if inspect.isclass(given) else ()
    chain = [vars(kind)["__init__"] for kind in kinds if "__init__" in vars(kind)] or [given]
    types: dict[str, Any] = {}
    for function in chain:
        with suppress(NameError):
            types = get_type_hints(function) | types
        if not any(setting.kind is setting.VAR_KEYWORD for setting in inspect.signature(function).parameters.values()):
            break
    return types


def lightnings_choice(message: str) -> SettingError | None:
    """The error for a strategy or an accelerator that Lightning does not have."""
    match = re.match(
        r"You selected an invalid (\w+) name: `\w+='(.*?)'`\.? (?:.*?(?:choices|names)[^:]*: )?(.*)", message
    )
    return match and SettingError(f"trainer.{match[1]}", match[2], f"give one of {shorten(match[3], 120)}")


def known_error(error: BaseException) -> SettingError | None:
    """The setting behind an error of Lightning or torch that does not name it; None for any other error."""
    text = str(error)
    if match := re.search(r"`val_check_interval` \((\d+)\) must be less than or equal to .* batches \((\d+)\)", text):
        remedy = f"an epoch has {match[2]} batches; give at most that, or trainer.check_val_every_n_epoch null"
        return SettingError("trainer.val_check_interval", int(match[1]), remedy)
    if match := re.search(r"can't allocate memory: you tried to allocate (\d+) bytes|CUDA out of memory", text):
        needs = f"settings that need {int(match[1]):,} bytes" if match[1] else "settings that fill the GPU"
        return SettingError("memory", needs, "this machine has less; use a smaller network, padding or batch")
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its chain of causes."""
    while error is not None:
        yield error
        error = error.__cause__


def value_and_remedy(text: str, root: str) -> str:
    """Value and remedy of a setting of a wrong type.

    Args:
        text: jsonargparse's message about the setting.
        root: message of the first cause.
    """
    if path := re.search(r"File does not exist: '(.*)'", text):
        return f"got {path[1]!r}; no such file, give the path of a YAML file"
    kinds = [kind_in_words(kind) for kind in re.findall(r"Expected (an? .+?)(?:\. Got value.*)?$", text, re.MULTILINE)]
    kinds = [kind for kind in kinds if not re.match("an? (path|dot|instantiatable)", kind)]
    values = re.findall(r"(?:Got|Given) value: (.*)", text)
    of_class = re.search("class_path|[Ii]mport path|subclass|attribute|instantiatable", text)
    if not values or not kinds or (of_class and set(kinds) <= {"a list", "null", "one of ['auto']"}):
        return class_and_remedy(text, root)
    return f"got {shorten(values[-1], 80)!r}; give {' or '.join(kinds)}"


def kind_in_words(kind: str) -> str:
    """Plain words for a type in jsonargparse's messages, such as "a <class 'int'>"."""
    kind = re.sub(r"an? <class '(?:\w+\.)*(\w+)'>", lambda match: KINDS.get(match[1], match[1]), kind)
    return re.sub(r"an? (typing\.)?Literal", "one of ", kind)


def class_and_remedy(text: str, root: str) -> str:
    """Value and remedy of a setting whose class is wrong."""
    for pattern, remedy in CLASS_ERRORS:
        if match := re.search(pattern, root):
            return f"got {shorten(match[1], 80)!r}; {remedy.format(*match.groups())}"
    match = re.search(r"class_path[ =]'([^']+)'|import path string: (\S+)|Got value: (?!Namespace)(\S+)", text)
    if not match or not re.search("has no attribute|No module named|import path string", text):
        listed = re.search(r"Expected a <class 'list'>\. Got value: (.+)", root)
        return f"got {shorten(listed[1], 80)!r}; give a list" if listed else shorten(root, 200)
    name = match[match.lastindex or 0]
    near = difflib.get_close_matches(name.split(".")[-1], CLASSES, n=1)
    remedy = f"did you mean {CLASSES[near[0]]}?" if near else "give its import path, such as package.module.Class"
    return f"got {name!r}; no such class, {remedy}"
