"""The optional packages that write and read other tools' formats."""

from __future__ import annotations

import importlib
from typing import Any

from robust.errors import SettingError


def package(name: str, setting: str = "export") -> Any:
    """Import an optional package, or a module in it, for the setting that needs it.

    Raises:
        SettingError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        remedy = 'install it: uv sync --extra export, or pip install "robust-lightning[export]"'
        raise SettingError(setting, f"no package {name.split('.')[0]}", remedy) from error
