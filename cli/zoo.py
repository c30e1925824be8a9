"""Adds a trained network to the zoo: ``python -m cli.zoo RUN_FOLDER NAME``, for maintainers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from cli.model_card import ExportedModel, model_card, read_records, training_settings
from reports.records import superseded
from robust import zoo
from robust.checkpoints import read_saved

LICENSE = "mit"
# what evaluations read; noise: Learn2Perturb's
_ENTRIES = ("pytorch-lightning_version", "epoch", "global_step", "method", "seed", "model", "noise")


def main(arguments: list[str] | None = None) -> None:
    """Write the weights and the model card of a run's last checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m cli.zoo", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run, with checkpoints/last.ckpt and results.json")
    parser.add_argument("name", help="name in the zoo, such as digits_adversarial_training")
    given = parser.parse_args(arguments)
    add(given.run, given.name, Path(zoo.__file__).parent)


def add(run: Path, name: str, folder: Path) -> None:
    """Write ``folder/NAME.safetensors`` and ``folder/NAME.md`` from a run's folder."""
    content = read_saved(run / "checkpoints" / "last.ckpt", "run", "give the folder of a run")
    about = {key: content[key] for key in _ENTRIES if key in content}
    state = {key: weight.contiguous() for key, weight in content["state_dict"].items()}
    metadata = {"format": "pt", "license": LICENSE, zoo.HEADER: json.dumps(about)}
    save_file(state, folder / f"{name}.safetensors", metadata=metadata)
    (folder / f"{name}.md").write_text(_card(run, name, about), encoding="utf-8")


def _card(run: Path, name: str, about: dict[str, Any]) -> str:
    records = read_records(run)
    tests = [key for key in records if key.startswith("test") and key not in superseded(records)]
    settings = training_settings(records, {})
    network = about["model"]["init_args"]["classifier"]
    return model_card(
        ExportedModel(
            file=f"{name}.safetensors",
            method=about["method"],
            data=settings["data"]["class_path"].rpartition(".")[2],
            image_shape=_first(network, "image_shape"),
            num_classes=_first(network, "num_classes"),
            settings=settings,
            records={key: records[key] for key in tests},
            license=LICENSE,
            notes=[f'**Load it**: `robust.zoo.load("{name}")`, or `--ckpt_path {zoo.PREFIX}{name}`.'],
        )
    )


def _first(settings: Any, name: str) -> Any:
    """The setting of that name in the network, or in the network that it wraps."""
    arguments = settings["init_args"]
    return arguments[name] if name in arguments and "network" not in arguments else _first(arguments["network"], name)


if __name__ == "__main__":
    main()
