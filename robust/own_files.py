"""The user's own files: those that belong neither to this project, whose commit a record has, nor to a package."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
_OURS = ("callbacks", "cli", "datamodules", "lightning_modules", "reports", "robust")
_INSTALLED = [Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "purelib", "platlib")]


def hash_of_own_file(module: str) -> str | None:
    """Start of the SHA-256 of the file of an imported module; None if it is not the user's.

    >>> print(hash_of_own_file("torch"), hash_of_own_file("robust.own_files"))
    None None
    """
    return hash_if_own(Path(getattr(sys.modules.get(module), "__file__", None) or ""))


def hash_if_own(file: Path) -> str | None:
    """Start of the SHA-256 of a file of Python; None if it is not the user's, or no file."""
    file = file.resolve()
    published = any(file.is_relative_to(folder) for folder in (*_INSTALLED, *(CHECKOUT / name for name in _OURS)))
    return None if published or not file.is_file() else hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def texts(settings: Any) -> Iterator[str]:
    """All texts in settings of mappings and lists, at any depth.

    >>> list(texts({"class_path": "mine.Net", "layers": [1, "two"]}))
    ['mine.Net', 'two']
    """
    parts = settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list | tuple) else ()
    for part in parts:
        yield from [part] if isinstance(part, str) else texts(part)
