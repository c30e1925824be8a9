"""Every metric that a run logs: the pattern of its name, its unit, its direction and its meaning.

A name is ``<stage>/<metric>``, where the stage is ``train``, ``val`` or ``test``. In patterns, ``<...>`` stands for one
part of a name, without slashes. A threat model's part is ``<norm>_<size>``, such as ``linf_0.1``, with the size in
pixel units, or tells whose budgets it has, such as ``own_budgets``; budgets of sizes that an evaluation gives append
them, as in ``own_budgets_0.2``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

Unit = Literal["fraction", "pixel units", "squared pixel units", "nats", "count", "seconds", "per second", "none"]
Direction = Literal["higher is better", "lower is better", "none"]
STAGES = ("train", "val", "test")
ARROWS: dict[Direction, str] = {"higher is better": "↑", "lower is better": "↓", "none": ""}


@dataclass(frozen=True)
class MetricInfo:
    """Unit, direction and meaning of all metrics of one pattern.

    Args:
        pattern: pattern of the name without the stage.
        unit: unit of the values; fractions are in [0, 1].
        direction: whether higher or lower values are better.
        meaning: explanation in one line.
    """

    pattern: str
    unit: Unit
    direction: Direction
    meaning: str

    def matches(self, metric: str) -> bool:
        """Whether this is the pattern of a metric, given without its stage."""
        return _compiled(self.pattern).fullmatch(metric) is not None


def _fraction(pattern: str, meaning: str) -> MetricInfo:
    """A pattern of fractions, such as accuracies, of which more is better."""
    return MetricInfo(pattern, "fraction", "higher is better", meaning)


def _count(pattern: str, meaning: str) -> MetricInfo:
    """A pattern of counts, of which neither more nor less is better."""
    return MetricInfo(pattern, "count", "none", meaning)


def _accuracies(pattern: str, meaning: str) -> tuple[MetricInfo, ...]:
    """A pattern of accuracies, with what is logged beside them for networks with noise."""
    return (
        _fraction(pattern, meaning),
        MetricInfo(f"{pattern}/std", "fraction", "none", "std of this accuracy over passes of a network with noise"),
        _fraction(f"{pattern}/vote", "the same, by majority vote over passes"),
        _fraction(f"{pattern}/noise_off", "the same images, classified without noise"),
    )


REGISTRY: tuple[MetricInfo, ...] = (
    *_accuracies("accuracy/clean", "correct without perturbation, of all images"),
    _fraction(
        "accuracy/clean/attacked",
        "correct without perturbation, of the attacked images if these are not all; with noise the mean over passes",
    ),
    _fraction("accuracy/union", "correct under every attack"),
    _fraction("accuracy/average", "mean over groups of attacks"),
    _fraction("accuracy/worst/<group>", "correct under every attack of the group"),
    _fraction("accuracy/group/mean", "mean over groups of the test data"),
    _fraction("accuracy/group/<group>", "correct, of a group of the test data"),
    _fraction(
        "accuracy/a_rob/<threat model>",
        "A_rob of weighted minimax risk: correct under PGD, where misclassified images are attacked too",
    ),
    *_accuracies("accuracy/<attack>/<threat model>", "correct without perturbation and under the attack"),
    *_accuracies("accuracy_curve/<attack>/<threat model>", "accuracy under the attack at one of several radii"),
    _fraction("certified_accuracy/<threat model>", "correct and certified"),
    _fraction("certified_accuracy/<threat model>/low", "lower end of its confidence interval"),
    _fraction("certified_accuracy/<threat model>/high", "upper end of its confidence interval"),
    _fraction(
        "certified_accuracy/<threat model>/common_map",
        "the same if each image had the geometric mean of all images' budgets",
    ),
    _fraction(
        "certified_accuracy/<threat model>/<method>", "the same by one of several bounds, such as ibp and crown_ibp"
    ),
    _fraction(
        "weighted_accuracy/a_sa/<threat model>/<alpha>",
        "A_sa of weighted minimax risk: accuracy on A_rob's images, where vulnerable ones count more",
    ),
    _fraction(
        "weighted_accuracy/a_tr/<threat model>/<alpha>",
        "A_tr of weighted minimax risk: the same under an attack on the weighted loss",
    ),
    _count("weighted_accuracy/<name>/<threat model>/<alpha>/effective_samples", "effective sample size of the weights"),
    _count("weighted_accuracy/samples", "number of images"),
    _count("attacked_samples", "number of images that AdversarialEvaluation covers"),
    _count("recomputed_samples/<threat model>", "number of certificates that needed float64"),
    _fraction("certified_volume/certified", "images with any certified box"),
    MetricInfo(
        "certified_volume/epsilon",
        "pixel units",
        "higher is better",
        "mean, over images with a certified box, of the uniform budget of the same volume",
    ),
    _count("certified_volume/samples", "number of images"),
    MetricInfo("budget/<threat model>/min", "pixel units", "none", "smallest budget of a pixel"),
    MetricInfo("budget/<threat model>/max", "pixel units", "none", "largest budget of a pixel"),
    MetricInfo(
        "budget/<threat model>/log_volume_error",
        "nats",
        "lower is better",
        "largest distance of an image's mean log budget from log epsilon",
    ),
    MetricInfo(
        "budget/<threat model>/common_variance",
        "fraction",
        "none",
        "fraction of the variance of log budgets that one map for all images explains; 1 if all images have the same",
    ),
    MetricInfo("budget_region/<threat model>/<region>", "pixel units", "none", "mean budget on a region of the images"),
    MetricInfo(
        "budget_region/<threat model>/<region>/same_pixels",
        "pixel units",
        "none",
        "the same with each pixel's budget replaced by its mean over all images",
    ),
    MetricInfo(
        "budget_order/<threat model>/<order>",
        "fraction",
        "none",
        "images whose mean budget is smaller on the first region than on the second",
    ),
    MetricInfo("robustness_score/r2", "pixel units", "higher is better", "R2: mean l2 distance to the boundary"),
    MetricInfo("robustness_score/r2/area", "pixel units", "higher is better", "R2 as the area under the drawn curve"),
    MetricInfo("robustness_score/r2/failed", "fraction", "none", "images on which every attack fails"),
    MetricInfo("robustness_score/r2/closest/<attack>", "fraction", "none", "images to which this attack came closest"),
    MetricInfo("robustness_score/<name>", "none", "higher is better", "mean over images and radii of the score"),
    MetricInfo("robustness_score/<name>/integral", "none", "higher is better", "its integral over radii"),
    _fraction("robustness_score/<name>/normalized", "its ratio to a constant classifier's"),
    _count("robustness_score/<name>/samples", "number of images"),
    MetricInfo("masking/failed_checks", "count", "lower is better", "failed checks for masked gradients"),
    _count("masking/samples", "number of images"),
    _fraction("masking/accuracy/clean", "correct without attack, of these images"),
    _fraction("masking/accuracy/<attack>/<threat model>", "correct under an attack of the checks"),
    MetricInfo("training_cost/parameters", "count", "lower is better", "parameters of all networks of the training"),
    MetricInfo("training_cost/seconds", "seconds", "lower is better", "time of the training steps"),
    MetricInfo(
        "training_cost/forward_equivalents",
        "count",
        "lower is better",
        "passes of one image in the training, as forward passes through the classifier",
    ),
    MetricInfo("reconstruction", "squared pixel units", "lower is better", "an autoencoder's mean squared l2 distance"),
    MetricInfo("loss", "none", "lower is better", "the method's loss on a batch"),
    MetricInfo("epsilon", "pixel units", "none", "size of the threat model that the schedule has reached"),
    MetricInfo("alpha_low", "none", "none", "smallest budget over epsilon that the schedule has reached"),
    MetricInfo("images_per_second", "per second", "higher is better", "images of training, over all processes"),
    MetricInfo("learning_rate", "none", "none", "learning rate of the first optimizer"),
    MetricInfo("learning_rate_<number>", "none", "none", "learning rate of another optimizer"),
    MetricInfo("penalty", "none", "lower is better", "cross-Lipschitz penalty"),
    MetricInfo("mean_radius", "pixel units", "none", "mean radius of the images of a batch"),
    MetricInfo(
        "kl",
        "nats",
        "lower is better",
        "the weights' divergence from the prior, for each training image",
    ),
    MetricInfo("mean_strength", "none", "none", "mean strength of the injected noise"),
    MetricInfo("mean_scale", "none", "none", "mean scale of the learned noise"),
    MetricInfo("divergence", "nats", "lower is better", "mean divergence of the predictions in a batch"),
    MetricInfo("meta_loss", "none", "lower is better", "loss of the generator of noise"),
    MetricInfo("generator_gradient", "none", "none", "norm of the gradient of the generator of noise"),
    MetricInfo("discrepancy", "none", "lower is better", "discrepancy of the codes from the prior"),
    MetricInfo("generator_loss", "none", "lower is better", "loss of the generator of examples"),
    MetricInfo("disagreement", "nats", "none", "mean cross-entropy between the predictions on two images"),
    MetricInfo("flip_rate", "fraction", "none", "generated images whose predicted class differs"),
    MetricInfo("distance", "pixel units", "none", "mean l2 distance of generated images"),
)


def find(name: str) -> MetricInfo | None:
    """The registry's entry of a metric, given with its stage; None if there is none.

    >>> find("test/accuracy/pgd/linf_0.1").unit
    'fraction'
    >>> find("test/accuracy") is None
    True
    """
    stage, _, metric = name.partition("/")
    return _find(metric) if stage in STAGES else None


@cache
def _find(metric: str) -> MetricInfo | None:
    return next((info for info in REGISTRY if info.matches(metric)), None)


def threat_model_name(norm: str, epsilon: float) -> str:
    """The part of a metric's name that says in which ball it was measured.

    >>> threat_model_name("linf", 8 / 255)
    'linf_0.0313725'

    Args:
        norm: norm of the ball.
        epsilon: radius of the ball, in pixel units.
    """
    return f"{norm}_{epsilon:g}"


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("".join("[^/]+" if part.startswith("<") else re.escape(part) for part in _parts(pattern)))


def _parts(pattern: str) -> list[str]:
    return re.split(r"(<[^>]*>)", pattern)


def markdown_table() -> str:
    """The registry as a table in Markdown."""
    rows = [
        f"| `{info.pattern}` | {info.unit} | {ARROWS[info.direction] or '-'} | {info.meaning} |"
        for info in sorted(REGISTRY, key=lambda info: info.pattern)
    ]
    return "\n".join(["| metric | unit | better | meaning |", "| --- | --- | --- | --- |", *rows])
