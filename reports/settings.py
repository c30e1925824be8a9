"""Settings of a run as flat names and values, and the settings that define an experiment."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

# Two runs are one experiment if they differ only in these: seeds, folders, and settings that only observe the run.
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
    "num_sanity_val_steps",
)
_VALIDATION = ("limit_val_batches", "check_val_every_n_epoch", "val_check_interval")
_BY_VALIDATION = ("ReduceLROnPlateau", "EarlyStopping")  # a training with one of these depends on its validations
_OTHER_DATA = ("seed", "download", "num_workers", "eval_batch_size")
_OWN_DATA = ("ImageFolder", "Table")  # their root is the data; that of published data says only where these are
_PUBLISHED = {"torch", "torchvision", "pytorch_lightning", "robust", "datamodules", "lightning_modules", "callbacks"}
_OF_SWEEPS = "cli.pruning."
_OWN_CALLBACKS = "callbacks."  # they observe a training; others may change it
_OBSERVERS = {"ModelCheckpoint", "LearningRateMonitor", "ModelSummary", "RichModelSummary", "DeviceStatsMonitor"}
_OBSERVERS |= {"TQDMProgressBar", "RichProgressBar"}
_TRAINING_DATA = ("batch_size", "augmentation")  # these do not matter in an evaluation
IMAGES = "number of images"
PRECISION = (  # how tight a bound or a distance is, not which attack runs
    "CertifiedEvaluation.verifier",
    "CertifiedEvaluation.methods",
    "CertifiedEvaluation.rounding_safe",
    "CertifiedEvaluation.epsilons",
    "CertifiedEvaluation.norm",
    "CertifiedEvaluation.budgets",
    "CertifiedVolume.search",
    "CertifiedVolume.num_samples",
    "CertifiedVolume.seed",
    "CertifiedVolume.confidence",
    "RobustnessScore.halvings",
    "AdversarialEvaluation.num_samples",
    "SampledRobustness.score",
    "SampledRobustness.epsilons",
    "SampledRobustness.seed",
    IMAGES,
)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, without the levels ``init_args``.

    A published class has its last name; a user's has its path, since two files may define one name.

    >>> flat({"model": {"class_path": "robust.networks.DMSmall", "init_args": {"width": 3}}})
    {'model': 'DMSmall', 'model.width': 3}
    >>> flat({"model": {"class_path": "my_networks.Net"}})
    {'model': 'my_networks.Net'}
    """
    if isinstance(value, dict) and "class_path" in value:
        return {name: _short_class(str(value["class_path"]))} | flat(value.get("init_args") or {}, name)
    if isinstance(value, dict):
        nested = [flat(inner, f"{name}.{part}".strip(".")) for part, inner in value.items()]
        return {key: plain for settings in nested for key, plain in settings.items()}
    return {name: value}


def _short_class(path: str) -> str:
    return path.rpartition(".")[2] if path.partition(".")[0] in _PUBLISHED else path


def experiment(record: dict[str, Any]) -> dict[str, Any]:
    """The flat settings that define a record's training, without its seed."""
    config = record.get("config") or {}
    ignored = {f"data.{name}" for name in (*_ignored_data(config), "test_images")}
    parts = {name: part for name, part in config.items() if name not in _OTHER}
    given = config.get("trainer") or {}
    other = _OTHER_TRAINER if any(name in text(config) for name in _BY_VALIDATION) else _OTHER_TRAINER + _VALIDATION
    trainer = {name: value for name, value in given.items() if name not in other}
    changing = [each for each in given.get("callbacks") or [] if not _observes(_class_path(each))]
    settings = flat(parts | {"trainer": trainer | ({"callbacks": changing} if changing else {})})
    marked: dict[str, Any] = _marked({name: value for name, value in settings.items() if name not in ignored}, record)
    return marked


def _marked(value: Any, record: dict[str, Any]) -> Any:
    """Settings in which the user's classes have the hash of their file, since two files may define one path."""
    code: dict[str, str] = record.get("own_code") or {}
    if isinstance(value, dict):
        return {name: _marked(part, record) for name, part in value.items()}
    if isinstance(value, list):
        return [_marked(part, record) for part in value]
    return f"{value} (file {code[value]})" if isinstance(value, str) and value in code else value


def _observes(path: str) -> bool:
    return path.startswith((_OWN_CALLBACKS, _OF_SWEEPS)) or "." not in path or path.rpartition(".")[2] in _OBSERVERS


def _ignored_data(config: dict[str, Any]) -> tuple[str, ...]:
    """Settings of the data module that do not change the images."""
    path = _class_path(config.get("data"))
    published = path.rpartition(".")[0] in ("", "datamodules") and path.rpartition(".")[2] not in _OWN_DATA
    return (*_OTHER_DATA, "root") if published else _OTHER_DATA


def _class_path(part: Any) -> str:
    return str(part.get("class_path", "") if isinstance(part, dict) else part or "")


def data(record: dict[str, Any]) -> str:
    """The evaluated data as text that is equal for equal data; empty if the record's settings do not name any."""
    config = record.get("config") or {}
    ignored = {f"data.{name}" for name in (*_ignored_data(config), *_TRAINING_DATA)}
    settings = _marked(flat({"data": config.get("data") or {}}), record)
    return text({name: value for name, value in settings.items() if name not in ignored and value is not None})


def attacks(
    config: dict[str, Any], stage: str = "test", measured: Iterable[str] = (), *, in_training: bool = False
) -> dict[str, str]:
    """Settings of each attack of ``AdversarialEvaluation`` as text, by its name and threat model.

    Args:
        config: settings of a run.
        stage: stage of the compared metrics.
        measured: names of the run's metrics, from which the module's own threat models are known.
        in_training: whether the run is a training, in which evaluations run only after some epochs.
    """
    texts: dict[str, str] = {}
    for given in _evaluations(config, "AdversarialEvaluation", in_training):
        balls = given.get("balls") or {}
        for key, case in (given.get("attacks") or {}).items():
            name = case.get("name") or key
            own = [each for metric in measured if (each := _own_threat_model(metric, f"{stage}/accuracy/{name}/"))]
            for target in _targets(case, balls, own):
                unsized = target in own and not re.match("(linf|l2|l1) ", target)  # such as own budgets
                setting = [case.get("attack"), _sizes(config)] if unsized else case.get("attack")
                texts[f"{name} in {target}".strip()] = text(setting)
    return texts


def other_attacks(config: dict[str, Any], stage: str = "test", *, in_training: bool = False) -> dict[str, str]:
    """Settings of the evaluations with attacks or bounds of their own, as text, by class and setting.

    The arguments are those of :func:`attacks`. Of several evaluations of a class, each setting has a list of values. A
    verifier of None is the module's, whose precision in training does not matter.
    """
    model = (config.get("model") or {}).get("init_args") or {}
    values: dict[str, list[Any]] = {}
    for name, read in _READ.items():
        given = _evaluations(config, name, in_training)
        several = sorted((read(each, model, stage) for each in given), key=text)
        for each in several:
            for setting, value in each.items():
                values.setdefault(f"{name}.{setting}", []).append(value)
    return {name: text(of_all[0] if len(of_all) == 1 else of_all) for name, of_all in values.items()}


def _weighted(given: dict[str, Any], model: dict[str, Any], stage: str) -> dict[str, Any]:
    if stage != "test":
        return {}
    epsilon = model.get("epsilon") if given.get("epsilon") is None else given["epsilon"]
    return {name: given.get(name) for name in ("steps", "step_size", "restarts")} | {"epsilon": epsilon}


def _certified(given: dict[str, Any], model: dict[str, Any], stage: str) -> dict[str, Any]:
    default = 5 if stage == "test" else 0
    steps = default if given.get("pgd_steps") is None else given["pgd_steps"]
    verifier = flat({"": given.get("verifier") or model.get("verifier") or "auto"})
    return {
        **({"pgd_steps": steps} if steps else {}),
        "verifier": {name: value for name, value in verifier.items() if name != "training_precision"},
        "methods": given.get("methods"),
        "rounding_safe": given.get("rounding_safe", True),
        "epsilons": given.get("epsilons") or [model.get("epsilon")],
        "norm": given.get("norm"),
        "budgets": flat(given.get("budgets") or {}),
    }


def _adversarial(given: dict[str, Any], model: dict[str, Any], stage: str) -> dict[str, Any]:
    return {name: given.get(name, 1) for name in ("gradient_samples", "num_samples")}  # of networks with noise


def _sampled(given: dict[str, Any], model: dict[str, Any], stage: str) -> dict[str, Any]:
    return {name: given.get(name) for name in ("score", "epsilons", "seed")}


def _score(given: dict[str, Any], model: dict[str, Any], stage: str) -> dict[str, Any]:
    return {"attacks": given.get("attacks"), "halvings": given.get("halvings", 25)}


def _curve(given: dict[str, Any], model: dict[str, Any], stage: str) -> dict[str, Any]:
    return {name: given.get(name) for name in ("attacks", "num_samples", "seed")} | {"norm": given.get("norm", "linf")}


def _volume(given: dict[str, Any], model: dict[str, Any], stage: str) -> dict[str, Any]:
    return {name: given.get(name) for name in ("search", "num_samples", "seed", "confidence")}


# what each evaluation compares: its own settings, those of the model and the stage give values by name
_READ: dict[str, Callable[[dict[str, Any], dict[str, Any], str], dict[str, Any]]] = {
    "WeightedMinimaxEvaluation": _weighted,
    "CertifiedEvaluation": _certified,
    "AdversarialEvaluation": _adversarial,
    "SampledRobustness": _sampled,
    "RobustnessScore": _score,
    "AccuracyCurve": _curve,
    "CertifiedVolume": _volume,
}
OTHER_EVALUATIONS = (*(f"{name}." for name in _READ), IMAGES)  # see other_attacks


def _evaluations(config: dict[str, Any], name: str, in_training: bool) -> Iterator[dict[str, Any]]:
    """Settings of the run's callbacks of a class, without those that do not evaluate in a training."""
    for callback in (config.get("trainer") or {}).get("callbacks") or []:
        if not isinstance(callback, dict) or not str(callback.get("class_path")).endswith(name):
            continue
        given = callback.get("init_args") or {}
        default = 1 if name == "CertifiedEvaluation" else None
        if not in_training or given.get("every_n_epochs", default) is not None:
            yield given


def _sizes(config: dict[str, Any]) -> dict[str, Any]:
    """What gives the module's own threat models their sizes."""
    given = (config.get("model") or {}).get("init_args") or {}
    return {name: given.get(name) for name in ("epsilon", "alpha_low", "alpha_high")}


def _own_threat_model(metric: str, prefix: str) -> str | None:
    """The threat model of an accuracy under the attack with this prefix, such as ``linf 0.1``; None for others."""
    name = metric.removeprefix(prefix)
    return name.replace("_", " ") if metric.startswith(prefix) and "/" not in name else None


def _targets(case: dict[str, Any], balls: dict[str, Any], own: list[str]) -> list[str]:
    """The threat models of a case, with their sizes; ``own`` are the known ones of the module."""
    norm = case.get("norm")
    if not norm and not case.get("threat_model"):
        return [f"{name} {_short(size)}" for name, size in balls.items()] or own or ["its own threat models"]
    target = flat({"": case.get("threat_model") or norm})
    size = next((value for name, value in target.items() if "epsilon" in name), balls.get(norm or "", ""))
    return [f"{target.get('', '')} {_short(case.get('epsilon') or size)}"]


def _short(value: Any) -> str:
    """A size as text, as in the names of metrics."""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def text(value: Any) -> str:
    """A value as text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, default=str)
