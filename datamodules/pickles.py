"""Reads pickles of arrays and plain values without running code in them.

Python's reader calls every function that a pickle names. This reader accepts only the few names that NumPy's arrays and
bytes need, and replaces each by a stand-in, since NumPy's functions do not check their arguments.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from robust.errors import SettingError


def read_pickle(path: Path) -> Any:
    """Read numbers, text, bytes, lists, tuples, dicts, and NumPy's arrays of numbers; text of Python 2 is Latin-1.

    Raises:
        UnpicklingError: if the pickle names anything else.
        Exception: any other error, if the pickle is damaged.
    """
    with path.open("rb") as file:
        return _without_stand_ins(_ArrayUnpickler(file, encoding="latin1").load())


class _DType:
    """Replaces ``numpy.dtype``; accepts only booleans, integers and floats."""

    def __init__(self, kind: str, *_: Any) -> None:
        dtype = np.dtype(str(kind))
        if dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"arrays of {dtype} are not supported")
        self.dtype = dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Replaces ``numpy.ndarray``; builds the array from its bytes, type and shape."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        self.value = _from_bytes(content, kind, shape, "F" if fortran else "C").value


def _reconstruct(*_: Any) -> _Array:
    """Replaces NumPy's function of this name; returns an array without content."""
    return _Array()


def _from_bytes(content: Any, kind: _DType, shape: tuple[int, ...], order: str) -> _Array:
    """Replaces NumPy's ``_frombuffer``."""
    raw = content.encode("latin1") if isinstance(content, str) else content
    array = _Array()
    array.value = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if order == "F" else "C").copy()
    return array


def _scalar(kind: _DType, content: Any) -> Any:
    """Replaces NumPy's ``scalar``."""
    return _from_bytes(content, kind, (), "C").value[()]


def _encode(text: str, encoding: str) -> bytes:
    """Replaces ``codecs.encode``, with which old pickles store bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding} is not supported")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    known: ClassVar[dict[str, Any]] = {
        "numpy.dtype": _DType,
        "numpy.ndarray": _Array,
        "_codecs.encode": _encode,
        **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
        **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
        **{f"numpy.{core}.numeric._frombuffer": _from_bytes for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name in the pickle.

        Raises:
            UnpicklingError: if there is none.
        """
        full = f"{module}.{name}"
        if full not in self.known:
            raise pickle.UnpicklingError(f"it names {full}, which could run code")
        return self.known[full]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to objects outside the file."""
        raise pickle.UnpicklingError("it refers to an object outside the file")


def _without_stand_ins(value: Any) -> Any:
    """Replace stand-ins by their arrays, in lists, tuples and dicts too."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _without_stand_ins(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_stand_ins(part) for part in value)
    return value


def read_trusted(path: Path, trusted: bool, setting: str) -> Any:
    """Read a trusted pickle with Python's reader, which runs code in it, and any other with :func:`read_pickle`.

    Raises:
        SettingError: if the pickle is not trusted and has more than arrays and plain values.
    """
    if trusted:
        with path.open("rb") as file:
            return pickle.load(file, encoding="latin1")
    try:
        return read_pickle(path)
    except pickle.UnpicklingError as error:
        if "could run code" not in str(error):
            raise
        remedy = f"{error}; convert it to npz, or set data.trust_pickle to true if you trust its author"
        raise SettingError(setting, str(path), remedy) from error
