"""Reads a file in the format of ``results.json``, and checks the fields that a report uses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robust.errors import SettingError, require
from robust.metric_names.registry import find

FILE = "results.json"
Record = dict[str, Any]

_KINDS = {dict: "a mapping", list: "a list", str: "a text", float: "a finite number", int: "a number above 0"}
_FIELDS: dict[str, type] = {
    "config": dict,
    "config.ckpt_path": str,
    "checkpoint": str,
    "config.model": dict,
    "config.model.init_args": dict,
    "config.checkpoint": dict,
    "config.trainer": dict,
    "config.trainer.callbacks": list,
    "config.trainer.default_root_dir": str,
    "command": str,
    "wall_time": float,
    "samples": dict,
    "own_code": dict,
    "training_cost": dict,
    "training_cost.seconds": float,
    "outcomes": dict,
    "margins": dict,
    "skipped": dict,
}  # a field comes after the field of which it is a part
_ROUNDING = 1e-6  # of a fraction
_PARTS: dict[str, type] = {"samples": int, "outcomes": dict, "margins": list, "skipped": str, "own_code": str}


def read_records(file: Path) -> dict[str, Record]:
    """The records of a file by name.

    Raises:
        SettingError: if the file has another format, or a field that a report uses has a wrong type.
    """
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bytes of another encoding, no JSON, or too deep
        raise SettingError("runs", str(file), f"it is not valid JSON ({error}); give a {FILE}") from None
    well_formed = isinstance(records, dict) and all(
        isinstance(record, dict) and isinstance(record.get("metrics"), dict) for record in records.values()
    )
    require(well_formed and bool(records), "runs", str(file), f"it has no records with metrics; give a {FILE}")
    for name, record in records.items():
        for metric, value in record["metrics"].items():
            info = find(metric)
            fits = (
                info is None or info.unit != "fraction" or not _is(value, float) or -_ROUNDING <= value <= 1 + _ROUNDING
            )
            require(fits, f"{file}, {name}, metrics.{metric}", value, "it is a fraction; give a number in [0, 1]")
        for field, value, kind in _fields(record):
            remedy = f"give {_KINDS[kind]}, or null, or leave it out"
            require(value is None or _is(value, kind), f"{file}, {name}, {field}", value, remedy)
        for field, value, kind in _parts(record):
            require(_is(value, kind), f"{file}, {name}, {field}", value, f"give {_KINDS[kind]}")
    return dict(records)


def superseded(records: dict[str, Any]) -> set[str]:
    """Names of the records from before the last training; those of its ``last.ckpt`` are of earlier weights."""
    names = list(records)
    last = max((index for index, name in enumerate(names) if name.partition("-")[0] == "fit"), default=0)
    return set(names[:last])


def _fields(record: Record) -> Iterator[tuple[str, Any, type]]:
    """Name, value and type of each field that may be null; the caller checks each one before it takes the next."""
    for metric, number in record["metrics"].items():
        yield f"metrics.{metric}", number, float
    for field, kind in _FIELDS.items():
        value: Any = record
        for part in field.split("."):
            value = (value or {}).get(part)
        yield field, value, kind
    for name, callback in _callbacks(record):
        settings = callback.get("init_args")
        yield f"{name}.init_args", settings, dict
        for setting in ("balls", "attacks"):
            yield f"{name}.{setting}", (settings or {}).get(setting), dict


def _parts(record: Record) -> Iterator[tuple[str, Any, type]]:
    """Name, value and type of each part of a mapping, which must not be null."""
    for field, kind in _PARTS.items():
        for part, value in (record.get(field) or {}).items():
            yield f"{field}.{part}", value, kind
    for name, callback in _callbacks(record):
        for case, settings in ((callback.get("init_args") or {}).get("attacks") or {}).items():
            yield f"{name}.attacks.{case}", settings, dict


def _callbacks(record: Record) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and settings of each callback in the record's settings."""
    for callback in ((record.get("config") or {}).get("trainer") or {}).get("callbacks") or []:
        if isinstance(callback, dict):
            yield f"config.trainer.callbacks.{str(callback.get('class_path')).rpartition('.')[2]}", callback


def _is(value: Any, kind: type) -> bool:
    if kind not in (float, int):
        return isinstance(value, kind)
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return number and (kind is float or value > 0)
