"""The user's own modules: those in the folder where the command line is called."""

from __future__ import annotations

import sys
from pathlib import Path

from robust.errors import SettingError

CHECKOUT = Path(__file__).resolve().parents[1]


def add_working_folder() -> None:
    """Let ``class_path`` name modules in the working folder.

    The folder comes last on ``sys.path``: no file in it hides a module of the checkout or an installed package.

    Raises:
        SettingError: if it has a module of a name that the checkout takes, which could never be imported.
    """
    folder = Path.cwd()
    if folder == CHECKOUT:
        return
    for name in checkout_names():
        module, package = folder / f"{name}.py", folder / name
        if module.exists() or any(package.glob("*.py")):  # a folder train/ of images is none
            found = module if module.exists() else package
            raise SettingError(name, str(found), "robust-lightning has a module of this name; rename yours")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def checkout_names() -> list[str]:
    """Names of the checkout's modules and packages that can be imported."""
    modules = [path.stem for path in CHECKOUT.glob("*.py")]
    return sorted(modules + [path.parent.name for path in CHECKOUT.glob("*/__init__.py")])
