"""The model card beside an exported network: the method, its settings, and the measured results."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from reports.records import superseded
from robust.errors import SettingError
from robust.metric_names.registry import find

_SETTINGS = ("seed_everything", "model", "data", "epsilon_schedule")  # the other settings concern the machine


@dataclass
class ExportedModel:
    """The contents of a model card.

    Args:
        file: name of the exported file.
        method: class of the method.
        data: class of the training's data module; empty if it is not recorded.
        image_shape: shape of the images, (C, H, W).
        num_classes: number of classes.
        settings: the training's resolved settings as plain data.
        records: records of ``results.json``, by name.
        license: SPDX identifier of the licence of the weights; None if it is not stated.
        notes: sentences about the exported network.
    """

    file: str
    method: str
    data: str
    image_shape: tuple[int, int, int]
    num_classes: int
    settings: dict[str, Any]
    records: dict[str, Any]
    license: str | None
    notes: list[str]


def model_card(model: ExportedModel) -> str:
    """The card in Markdown, with the YAML header that model hubs read."""
    header: dict[str, Any] = {"library_name": "pytorch", "pipeline_tag": "image-classification"}
    header |= {"tags": ["robustness", model.method]} | ({"datasets": [model.data]} if model.data else {})
    if model.license is not None:
        header["license"] = model.license
    channels, height, width = model.image_shape
    settings = {name: model.settings[name] for name in _SETTINGS if name in model.settings}
    data = f" on `{model.data}`" if model.data else "; on which data, and by which schedule, is not recorded"
    parts = [
        f"---\n{_yaml(header)}---\n",
        f"# {model.file}\n",
        f"An image classifier that `{model.method}` of robust-lightning trained{data}.\n",
        f"* **Input**: float32 images in [0, 1], shape (B, {channels}, {height}, {width}), without normalisation.\n"
        f"* **Output**: {model.num_classes} logits.\n"
        f"* **Licence**: {model.license or 'not stated; ask the authors before use'}.",
        *(f"* {note}" for note in model.notes),
        "\n## Measured results\n",
        *(_results(model.records) or ["None: there is no `results.json` beside the checkpoint.\n"]),
        f"## Settings\n\n```yaml\n{_yaml(settings)}```\n",
    ]
    return "\n".join(parts)


def read_records(folder: Path) -> dict[str, Any]:
    """The records of ``results.json`` in a run's folder; empty if there is no such file.

    Raises:
        SettingError: if the file is damaged.
    """
    path = folder / "results.json"
    if not path.exists():
        return {}
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingError("results.json", str(path), f"it is not valid JSON ({error}); move it away") from error
    return records if isinstance(records, dict) else {}


def training_settings(records: dict[str, Any], checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The settings of the last recorded training; if none is recorded, seed and model of its checkpoint alone."""
    trainings = [record["config"] for name, record in records.items() if name.split("-")[0] == "fit"]
    known = {"seed_everything": checkpoint.get("seed"), "model": checkpoint.get("model")}
    settings: dict[str, Any] = trainings[-1] if trainings else {k: v for k, v in known.items() if v is not None}
    return settings


def data_name(settings: dict[str, Any]) -> str:
    """The class of the data module in a run's settings; empty if they have none."""
    data = settings.get("data") or {}
    return str(data.get("class_path", "") if isinstance(data, dict) else data).rpartition(".")[2]


def _results(records: dict[str, Any]) -> list[str]:
    """A table for each record, with the checkpoint that was measured, without those of weights that trained on."""
    parts = []
    earlier = superseded(records)
    for name, record in records.items():
        checkpoint = record.get("checkpoint", record["config"].get("ckpt_path"))
        trained = name.split("-")[0] == "fit"
        if name in earlier and (trained or not checkpoint or Path(checkpoint).name == "last.ckpt"):
            continue
        weights = f"`{Path(checkpoint).name}`" if checkpoint and not trained else "those at the end of training"
        rows = [_row(metric, value) for metric, value in record["metrics"].items()]
        images = ", ".join(f"{part} {count}" for part, count in (record.get("samples") or {}).items())
        about = f"Data: `{data_name(record['config'])}`, images: {images or 'not recorded'}. "
        about += f"Commit {record['commit']}, seed {record['seed']}, on {record['device']}."
        parts.append(
            f"`{name}`, weights: {weights}. {about}\n\n| metric | value | unit | meaning |\n| --- | --- | --- | --- |"
        )
        parts.append("\n".join(rows) + "\n")
    return parts


def _row(metric: str, value: float | None) -> str:
    info = find(metric)
    unit, meaning = ("", "") if info is None else (info.unit, info.meaning)
    return f"| {metric} | {_number(value)} | {'' if unit == 'none' else unit} | {meaning} |"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return text
