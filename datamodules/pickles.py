"""Pickles of arrays and plain values, read without running what is in them.

Python's own reader calls whatever a pickle names. This one knows five names, all of NumPy's arrays, and gives each a
stand-in of its own: NumPy's functions for it trust what they are given.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from robust.errors import SettingError


def read_pickle(path: Path) -> Any:
    """Numbers, text, bytes, lists, tuples, dicts, and NumPy's arrays of numbers; text of Python 2 is Latin-1.

    Raises:
        UnpicklingError: if the pickle names anything else.
        Exception: whatever a damaged pickle leads to.
    """
    with path.open("rb") as file:
        return _without_stand_ins(_ArrayUnpickler(file, encoding="latin1").load())


class _DType:
    """In place of ``numpy.dtype``: plain kinds of numbers alone."""

    def __init__(self, kind: str, *_: Any) -> None:
        found = np.dtype(str(kind))
        if found.kind not in "biuf":
            raise pickle.UnpicklingError(f"arrays of {found} are not read")
        self.dtype = found

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """In place of ``numpy.ndarray``: its bytes, seen through its type and shape."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        self.value = _from_bytes(content, kind, shape, "F" if fortran else "C").value


def _reconstruct(*_: Any) -> _Array:
    """In place of NumPy's function of that name: an array without content yet."""
    return _Array()


def _from_bytes(content: Any, kind: _DType, shape: tuple[int, ...], order: str) -> _Array:
    """In place of NumPy's ``_frombuffer``."""
    raw = content.encode("latin1") if isinstance(content, str) else content
    made = _Array()
    made.value = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if order == "F" else "C").copy()
    return made


def _scalar(kind: _DType, content: Any) -> Any:
    """In place of NumPy's function of that name."""
    return _from_bytes(content, kind, (), "C").value[()]


def _encode(text: str, encoding: str) -> bytes:
    """In place of ``codecs.encode``, by which old pickles hold bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding} is not read")
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
        """The stand-in for what a pickle names.

        Raises:
            UnpicklingError: if there is none.
        """
        full = f"{module}.{name}"
        if full not in self.known:
            raise pickle.UnpicklingError(f"it names {full}, which could run code")
        return self.known[full]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse what lies outside of the file."""
        raise pickle.UnpicklingError("it refers to what is not in the file")


def _without_stand_ins(value: Any) -> Any:
    """Arrays in the place of their stand-ins, in lists, tuples and dicts."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _without_stand_ins(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_without_stand_ins(part) for part in value)
    return value


def read_trusted(path: Path, trusted: bool, setting: str) -> Any:
    """A pickle with whatever is in it where it is trusted, else by :func:`read_pickle`.

    Raises:
        SettingError: if it is not trusted and holds more than arrays and plain values.
    """
    if trusted:
        with path.open("rb") as file:
            return pickle.load(file, encoding="latin1")
    try:
        return read_pickle(path)
    except pickle.UnpicklingError as error:
        if "could run code" not in str(error):
            raise
        remedy = f"{error}; convert it to npz, or set data.trust_pickle to true if you trust who made it"
        raise SettingError(setting, str(path), remedy) from error
