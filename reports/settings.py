"""Settings of a run as flat names and values, and which of them make a run another experiment."""

from __future__ import annotations

import json
from typing import Any

# Seeds, folders and what only observes the run: two runs that differ in these alone are one experiment.
_OTHER = ("seed_everything", "ckpt_path", "resume_settings", "test_after_fit", "checkpoint", "predict", "verbose")
_OTHER_TRAINER = (
    "callbacks",
    "logger",
    "default_root_dir",
    "enable_progress_bar",
    "enable_model_summary",
    "enable_checkpointing",
    "log_every_n_steps",
    "devices",
    "num_nodes",
    "strategy",
    "accelerator",
    "profiler",
    "limit_test_batches",
    "limit_val_batches",
    "check_val_every_n_epoch",
    "val_check_interval",
    "num_sanity_val_steps",
)
_OTHER_DATA = ("seed", "root", "download", "num_workers", "eval_batch_size")
_TRAINING_DATA = ("batch_size", "augmentation")  # of no importance to an evaluation


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, without the levels ``init_args``; a class is its last name.

    >>> flat({"model": {"class_path": "a.Net", "init_args": {"width": 3}}})
    {'model': 'Net', 'model.width': 3}
    """
    if isinstance(value, dict) and "class_path" in value:
        return {name: str(value["class_path"]).rpartition(".")[2]} | flat(value.get("init_args") or {}, name)
    if isinstance(value, dict):
        return {
            key: each for part, inner in value.items() for key, each in flat(inner, f"{name}.{part}".strip(".")).items()
        }
    return {name: value}


def experiment(config: dict[str, Any]) -> dict[str, Any]:
    """The flat settings that make a training what it is, apart from its seed."""
    ignored = {f"data.{name}" for name in (*_OTHER_DATA, "test_images")}
    parts = {name: part for name, part in config.items() if name not in _OTHER}
    trainer = {name: each for name, each in (config.get("trainer") or {}).items() if name not in _OTHER_TRAINER}
    settings = flat(parts | {"trainer": trainer})
    return {name: each for name, each in settings.items() if name not in ignored}


def data(config: dict[str, Any]) -> str:
    """The evaluated data as text that is equal for equal data; empty if the settings do not name any."""
    ignored = {f"data.{name}" for name in (*_OTHER_DATA, *_TRAINING_DATA)}
    settings = {name: each for name, each in flat({"data": config.get("data") or {}}).items() if name not in ignored}
    return text({name: each for name, each in settings.items() if each is not None})


def attacks(config: dict[str, Any]) -> dict[str, str]:
    """Settings of each attack of ``AdversarialEvaluation`` as text, by its name and threat model."""
    found: dict[str, str] = {}
    for callback in (config.get("trainer") or {}).get("callbacks") or []:
        if not isinstance(callback, dict) or not str(callback.get("class_path")).endswith("AdversarialEvaluation"):
            continue
        given = callback.get("init_args") or {}
        balls = given.get("balls") or {}
        for key, case in (given.get("attacks") or {}).items():
            for target in _targets(case, balls):
                found[f"{case.get('name') or key} in {target}".strip()] = text(case.get("attack"))
    return found


def _targets(case: dict[str, Any], balls: dict[str, Any]) -> list[str]:
    """The threat models of a case, with their sizes."""
    norm = case.get("norm")
    if balls and not norm and not case.get("threat_model"):
        return [f"{name} {size}" for name, size in balls.items()]
    target = flat({"": case.get("threat_model") or norm})
    own = next((each for name, each in target.items() if "epsilon" in name), balls.get(norm or "", ""))
    return [f"{target.get('') or 'its own threat models'} {case.get('epsilon') or own}"]


def text(value: Any) -> str:
    """A value as text, equal for equal values."""
    return json.dumps(value, sort_keys=True, default=str)
