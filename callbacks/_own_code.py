"""Hashes of the user's files that a run's settings name."""

from __future__ import annotations

from typing import Any

from robust.own_files import hash_of_own_file, texts


def own_code(config: dict[str, Any]) -> dict[str, str]:
    """Start of the SHA-256 of the file that defines each class and function of the user's, by its path in ``config``.

    Two files may define one path: ``my_networks.Net`` in two folders.
    """
    hashes = {text: hash_of_own_file(text.rpartition(".")[0]) for text in texts(config)}
    return {text: code for text, code in hashes.items() if code is not None}
