"""The user's own modules, in the current folder or beside the config files."""

from __future__ import annotations

import hashlib
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from robust.errors import SettingError
from robust.own_files import hash_if_own, texts

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


def code_in(settings: Any) -> dict[str, str]:
    """Hash of the user's file, or package, behind each class and function that settings name; nothing is imported.

    Files that these import are not looked at.

    Args:
        settings: values of settings as plain data, after the folders of their files are added.
    """
    hashes: dict[str, str] = {}
    for path in sorted(set(texts(settings))):
        parts = path.split(".") if _IMPORT_PATH.fullmatch(path) else []
        modules = (".".join(parts[:count]) for count in reversed(range(1, len(parts))))
        module, file = next(((name, found) for name in modules if (found := _file(name)).is_file()), ("", Path()))
        if module.partition(".")[0] not in (*checkout_names(), "tests") and (code := _hash(file)):
            hashes[module] = code
    return hashes


_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def _hash(file: Path) -> str | None:
    """Hash of a module's file, or of all files of its package; None if it is not the user's."""
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    codes = [code for each in files if (code := hash_if_own(each))]
    return " ".join(codes) if len(codes) < 2 else hashlib.sha256(" ".join(codes).encode()).hexdigest()[:12]


def _file(module: str) -> Path:
    """The file of a module or a package, whose name may have dots; an empty path if there is none."""
    first, *others = module.split(".")
    spec = PathFinder.find_spec(first)
    if spec is None or not others:
        return Path((spec and spec.has_location and spec.origin) or "")
    found = (Path(folder, *others) for folder in spec.submodule_search_locations or ())
    files = (file for path in found for file in (path.with_suffix(".py"), path / "__init__.py"))
    return next((file for file in files if file.is_file()), Path())


def checkout_names() -> list[str]:
    """Names of the checkout's modules and packages that can be imported."""
    modules = [path.stem for path in CHECKOUT.glob("*.py")]
    return sorted(modules + [path.parent.name for path in CHECKOUT.glob("*/__init__.py")])
