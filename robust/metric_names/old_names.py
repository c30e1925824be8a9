"""The names that metrics had before they were accuracies, to read older records and to explain older settings.

Errors became accuracies, and threat models got their sizes. A table has the names of single metrics; the names of
accuracies under attack depend on the settings of the run, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from robust.metric_names.registry import threat_model_name

ANY = "*"  # a part of a name that is not known

# Old name, new name, whether the value becomes 1 - value. <size> defaults to the model's epsilon, <ball> is the linf
# ball of the evaluation.
TABLE: tuple[tuple[str, str, bool], ...] = (
    ("clean_error", "accuracy/clean", True),
    ("verified_error/certified_volume", "certified_accuracy/volume_<size>", True),
    ("verified_error/certified_volume/low", "certified_accuracy/volume_<size>/high", True),
    ("verified_error/certified_volume/high", "certified_accuracy/volume_<size>/low", True),
    ("verified_error/certified_volume/epsilon_<size>", "certified_accuracy/volume_<size>", True),
    ("verified_error/certified_volume/epsilon_<size>/low", "certified_accuracy/volume_<size>/high", True),
    ("verified_error/certified_volume/epsilon_<size>/high", "certified_accuracy/volume_<size>/low", True),
    ("verified_error/certified_volume_capped", "certified_accuracy/capped_volume_<size>", True),
    ("verified_error/certified_volume_capped/low", "certified_accuracy/capped_volume_<size>/high", True),
    ("verified_error/certified_volume_capped/high", "certified_accuracy/capped_volume_<size>/low", True),
    ("verified_error/certified_volume_capped/epsilon_<size>", "certified_accuracy/capped_volume_<size>", True),
    ("verified_error/certified_volume_capped/epsilon_<size>/low", "certified_accuracy/capped_volume_<size>/high", True),
    ("verified_error/certified_volume_capped/epsilon_<size>/high", "certified_accuracy/capped_volume_<size>/low", True),
    ("verified_error/<threat model>", "certified_accuracy/<threat model>", True),
    ("verified_error/<threat model>/epsilon_<size>", "certified_accuracy/<threat model>", True),
    ("pgd_error/<threat model>", "accuracy/pgd_<steps>/<threat model>", True),
    ("pgd_error/<threat model>/epsilon_<size>", "accuracy/pgd_<steps>/<threat model>", True),
    ("recomputed_samples", "recomputed_samples/all", False),
    ("budget/<end>", "budget/own_budgets/<end>", False),
    ("budget/<end>/epsilon_<size>", "budget/own_budgets_<size>/<end>", False),
    ("budget/<threat model>/<end>", "budget/<threat model>/<end>", False),
    ("budget/<threat model>/<end>/epsilon_<size>", "budget/<threat model>/<end>", False),
    ("budget_region/<threat model>/<region>", "budget_region/<threat model>/<region>", False),
    ("budget_region/<threat model>/<region>/same_pixels", "budget_region/<threat model>/<region>/same_pixels", False),
    ("budget_order/<threat model>/<order>", "budget_order/<threat model>/<order>", False),
    ("a_nat", "accuracy/clean", False),
    ("a_rob", "accuracy/a_rob/<ball>", False),
    ("a_sa/<alpha>", "weighted_accuracy/a_sa/<ball>/<alpha>", False),
    ("a_tr/<alpha>", "weighted_accuracy/a_tr/<ball>/<alpha>", False),
    ("a_sa/<alpha>/effective_samples", "weighted_accuracy/a_sa/<ball>/<alpha>/effective_samples", False),
    ("a_tr/<alpha>/effective_samples", "weighted_accuracy/a_tr/<ball>/<alpha>/effective_samples", False),
    ("a_samples", "weighted_accuracy/samples", False),
    ("r2_fraction/<attack>", "robustness_score/r2/closest/<attack>", False),
    ("r2_share/<attack>", "robustness_score/r2/closest/<attack>", False),
    ("r<digit>", "robustness_score/r<digit>", False),
    ("r<digit>_<part>", "robustness_score/r<digit>/<part>", False),
    ("masking/clean", "masking/accuracy/clean", False),
    ("masking/pgd/epsilon_<size>", "masking/accuracy/pgd/linf_<size>", False),
    ("masking/<check>", "masking/accuracy/<check>/<masking ball>", False),
    ("accuracy_curve/<attack>/<size>", "accuracy_curve/<attack>/<curve norm>_<size>", False),
    ("accuracy_curve/<attack>/<size>/std", "accuracy_curve/<attack>/<curve norm>_<size>/std", False),
    ("accuracy/mean", "accuracy/group/mean", False),
)
_EXPRESSIONS = {
    "<end>": "min|max|log_volume_error",
    "<check>": "pgd|one_step|more_steps|more_restarts|noise|square",
    "<digit>": r"\d",
    "<size>": r"[\d.e+-]+",
    "<alpha>": r"alpha_[^/]+",
}  # of other placeholders: one part of a name
_VARIANTS = ("eot", "mean_network", "worst")


@dataclass
class _Run:
    """Settings on which names depend: parts of names by placeholder, radii by norm, and cases of attacks."""

    parts: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)
    norm: str = ANY
    cases: dict[str, str | None] = field(default_factory=dict)  # to their threat models, None for the model's own
    groups: set[str] = field(default_factory=set)
    grouped_data: bool = False  # whether GroupAccuracy measured groups of the test data

    def threat_model(self, old: str, size: str | None) -> str:
        """The new name of a threat model."""
        norm = {"uniform": "linf"}.get(old, old)
        if norm in ("linf", "l2", "l1"):
            return f"{norm}_{size or self.sizes.get(norm, ANY)}"
        name = {"learned": "own_budgets"}.get(old, old)
        return name if size is None else f"{name}_{size}"


def new_name(name: str) -> str | None:
    """The name that a metric has now, with ``*`` for sizes that depend on the run; None if it was not renamed.

    >>> new_name("val/verified_error/uniform")
    'val/certified_accuracy/linf_*'
    """
    stage, _, metric = name.partition("/")
    new, _ = _translated(metric, _Run())
    return None if new == metric else f"{stage}/{new}"


def new_metrics(metrics: Mapping[str, float | None], config: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics of a record under the names of today; errors become accuracies.

    Older records have a clean error, by which they are recognised; others stay as they are.

    Args:
        metrics: values by name, with the stage.
        config: the record's settings, which have the sizes of threat models.
    """
    if not any(name.endswith("/clean_error") for name in metrics):
        return dict(metrics)
    run = _run(config)
    translated: dict[str, float | None] = {}
    for name, value in metrics.items():
        stage, _, metric = name.partition("/")
        new, complement = _translated(metric, run)
        if metric == "accuracy/clean" and f"{stage}/clean_error" in metrics:
            new = "accuracy/clean/attacked"  # of those that an evaluation attacked; all images' has an entry of its own
        translated[f"{stage}/{new}"] = 1 - value if complement and value is not None else value
    return translated


def _translated(metric: str, run: _Run) -> tuple[str, bool]:
    """The new name of a metric without its stage, and whether its value becomes 1 - value."""
    metric = re.sub("/deviation$", "/std", metric)
    for old, new, complement in TABLE:
        match = re.fullmatch(_expression(old), metric)
        if match is not None:
            return _filled(old, new, match, run), complement
    first, *rest = metric.split("/")
    return (_accuracy(rest, run) or metric if first == "accuracy" else metric), False


def _filled(old: str, new: str, match: re.Match[str], run: _Run) -> str:
    """The new name with the parts of the old one."""
    parts = dict(zip(re.findall("<[^>]*>", old), match.groups(), strict=True))
    if "<threat model>" in parts:
        parts["<threat model>"] = run.threat_model(parts["<threat model>"], parts.get("<size>"))
    return re.sub("<[^>]*>", lambda name: {**run.parts, **parts}.get(name[0], ANY), new)


def _accuracy(parts: list[str], run: _Run) -> str | None:
    """The new name of an old accuracy under attack, given by the parts after ``accuracy/``; None if it is no such."""
    case, *rest = parts or [""]
    if case in run.groups:
        return "/".join(("accuracy", "worst", *parts))
    if case not in run.cases:
        groups = run.grouped_data and not rest and case not in ("clean", "union", "average")
        return f"accuracy/group/{case}" if groups else None
    threat_model = run.cases[case]
    if threat_model is None:
        named = rest and rest[0] not in (*_VARIANTS, "std", "vote", "noise_off")
        threat_model = run.threat_model(rest.pop(0) if named else run.norm, None)
    attack = f"{case}_{rest.pop(0)}" if rest and rest[0] in _VARIANTS else case
    if rest[:1] == ["noise_off"]:
        attack = f"{case}_mean_network"
    return "/".join(("accuracy", attack, threat_model, *rest))


def _expression(old: str) -> str:
    split = re.split("(<[^>]*>)", old)
    return "".join(f"({_EXPRESSIONS.get(part, '[^/]+')})" if part[:1] == "<" else re.escape(part) for part in split)


# -- the settings of a run ---------------------------------------------------------------------------------------------


def _run(config: Mapping[str, Any]) -> _Run:
    """The settings on which names depend, from a record's settings."""
    model = _settings(config.get("model"))
    norm, epsilon = model.get("norm", "linf"), model.get("epsilon")
    sizes = {norm: epsilon, "l2": model.get("epsilon_l2"), "l1": model.get("epsilon_l1")}
    if norm != "linf":
        sizes[norm] = epsilon
    run = _Run(sizes={name: f"{size:g}" for name, size in sizes.items() if size is not None}, norm=norm)
    run.parts = {"<size>": run.sizes.get(norm, ANY), "<steps>": "5", "<curve norm>": "linf"}
    run.parts |= dict.fromkeys(("<ball>", "<masking ball>"), run.threat_model("linf", None))
    for callback in (config.get("trainer") or {}).get("callbacks") or []:
        _add_callback(run, callback)
    return run


def _add_callback(run: _Run, callback: Any) -> None:
    name, settings = _class_name(callback), _settings(callback)
    epsilon = settings.get("epsilon")
    if name == "CertifiedEvaluation" and settings.get("pgd_steps"):
        run.parts["<steps>"] = str(settings["pgd_steps"])
    elif name == "WeightedMinimaxEvaluation" and epsilon is not None:
        run.parts["<ball>"] = threat_model_name("linf", epsilon)
    elif name == "GradientMaskingChecks" and epsilon is not None:
        run.parts["<masking ball>"] = threat_model_name("linf", epsilon)
    elif name == "GroupAccuracy":
        run.grouped_data = True
    elif name == "AccuracyCurve":
        run.parts["<curve norm>"] = settings.get("norm", "linf")
    elif name == "AdversarialEvaluation":
        for case, given in (settings.get("attacks") or {}).items():
            run.cases[case] = _case_threat_model(given, run)
            if given.get("group") is not None:
                run.groups.add(given["group"])


def _case_threat_model(case: Mapping[str, Any], run: _Run) -> str | None:
    given, norm = case.get("threat_model"), case.get("norm")
    if norm is not None:
        size = case.get("epsilon")
        return run.threat_model(norm, None) if size is None else threat_model_name(norm, size)
    size = _settings(given).get("epsilon")
    return None if size is None else threat_model_name(_class_name(given).removesuffix("Ball").lower(), size)


def _class_name(part: Any) -> str:
    path = part.get("class_path", "") if isinstance(part, Mapping) else part or ""
    return str(path).rpartition(".")[2]


def _settings(part: Any) -> dict[str, Any]:
    return (part.get("init_args") or {}) if isinstance(part, Mapping) else {}
