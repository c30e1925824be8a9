"""The user's own modules, in the current folder or beside the config files."""

from __future__ import annotations

import sys
from pathlib import Path

from robust.errors import SettingError

CHECKOUT = Path(__file__).resolve().parents[1]


def add_folder(folder: Path) -> None:
    """Let ``class_path`` name modules in a folder: the current folder, or the folder of a config file.

    The folder comes last on ``sys.path``: no file in it hides a module of the checkout, an installed package, or a
    module of a folder that was added before.

    Raises:
        SettingError: if it has a module with the name of one of the checkout, which could never be imported.
    """
    folder = folder.resolve()
    if folder == CHECKOUT or str(folder) in sys.path:
        return
    for name in checkout_names():
        module, package = folder / f"{name}.py", folder / name
        if module.exists() or any(package.glob("*.py")):  # a folder train/ of images is not a package
            clash = module if module.exists() else package
            raise SettingError(name, str(clash), "robust-lightning has a module of this name; rename yours")
    sys.path.append(str(folder))


def checkout_names() -> list[str]:
    """Names of the checkout's modules and packages that can be imported."""
    modules = [path.stem for path in CHECKOUT.glob("*.py")]
    return sorted(modules + [path.parent.name for path in CHECKOUT.glob("*/__init__.py")])
