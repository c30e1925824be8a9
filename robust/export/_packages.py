"""The optional packages that write and read other tools' formats."""

from __future__ import annotations

import importlib
from typing import Any

from robust.errors import SettingError


def package(name: str) -> Any:
    """Import an optional package, or a module in it.

    Raises:
        SettingError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        remedy = 'install it: uv sync --extra export, or pip install "robust-lightning[export]"'
        raise SettingError("export", f"no package {name.split('.')[0]}", remedy) from error
