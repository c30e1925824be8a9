"""Hashes of the user's files that a run's settings name."""

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


def own_code(config: dict[str, Any]) -> dict[str, str]:
    """Start of the SHA-256 of the file that defines each class and function of the user's, by its path in ``config``.

    Two files may define one path: ``my_networks.Net`` in two folders.
    """
    hashes = {}
    for text in _texts(config):
        module = sys.modules.get(text.rpartition(".")[0])
        file = Path(getattr(module, "__file__", None) or "").resolve()
        if file.is_file() and not _is_published(file):
            hashes[text] = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return hashes


def _texts(value: Any) -> Iterator[str]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for part in parts:
        yield from [part] if isinstance(part, str) else _texts(part)


def _is_published(file: Path) -> bool:
    """Whether a file belongs to this project, whose commit a record has, or to an installed package."""
    return any(file.is_relative_to(folder) for folder in (*_INSTALLED, *(CHECKOUT / name for name in _OURS)))
