"""One-line errors for wrong settings, instead of jsonargparse's list of attempts and hundreds of lines of usage."""

from __future__ import annotations

import inspect
import re
import sys
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser

from cli import class_changes, class_entries, composition, function_settings, help, user_code
from cli.config_files import RefusedYAMLError, check_file, dump, load
from cli.known_errors import causes
from cli.remedies import KINDS, value_and_remedy
from cli.sources import settings_in
from cli.unknown_settings import unknown_section, unknown_setting, unnamed_value
from cli.user_modules import add_folder
from robust.errors import SettingError, require


class OneLineParser(LightningArgumentParser):
    """Reports a wrong setting in one line: its full name, its value and the remedy.

    It does not accept abbreviated names, since a new setting could make them ambiguous.

    Attributes:
        read_settings: names and values of the settings in all config files that were read.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        class_changes.install()
        user_code.install()
        class_entries.install()
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
                parser = getattr(error, "subcommand_parser", self)
                name = unknown_section(parser, match[1] or match[2])
                value = namespace.get(name, namespace.get(f"{namespace.get('subcommand')}.{name}"))
                error.args = (unknown_setting(parser, name, value),)
            raise

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the cause and exit with status 2."""
        if unknown := re.match(r"unrecognized arguments: --([^ =]+)[ =]?(.*?)(?= --|$)", message):
            message = unknown_setting(self, unknown[1], unknown[2])
        elif unnamed := re.match(r"unrecognized arguments: ([^-\s]\S*)", message):
            message = unnamed_value(unnamed[1])
        elif message.startswith(("Problems parsing config", "Unexpected config", "Key must be a string")):
            message = f"config: got {self._reading!r}; give a YAML file of settings ({message})"
        if not self.exit_on_error:  # a parser of one class's settings; the outer parser adds the full name
            super().error(message, ex)
        sys.stderr.write(f"error: {' '.join(explain(message, ex).split())}\n")
        sys.exit(2)


def explain(message: str, error: Exception | None) -> str:
    """Setting, value and remedy from jsonargparse's error, which wraps one error per level of nesting."""
    chain = list(causes(error))
    levels = [str(cause) for cause in chain if isinstance(cause, TypeError) and str(cause).startswith("Parser key")]
    path = "".join(level.split('"')[1] + "." for level in levels)
    root = str(chain[-1]) if chain else message
    if re.search(": got .*; (no such setting, |settings beside it)", root):
        return path + root.replace("did you mean ", f"did you mean {path}")
    if missing := re.search("arguments are required: (.*)", root):
        wanted = [path + name.split(".")[-1] for name in missing[1].split(", ")]
        return f"{', '.join(wanted)}: not given; put it in the config file or add --{wanted[0]}"
    if group := re.search(r'^Parser key "(\S+)": Unable to load config "(.*)"', root):
        return f"{group[1]}: got {group[2]!r}; give its settings by their names, such as --{group[1]}.NAME=VALUE"
    if not levels:
        return message
    return f"{path[:-1]}: {value_and_remedy(path[:-1], levels[-1], [str(cause) for cause in chain])}"


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
