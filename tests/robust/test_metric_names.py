"""Every metric has a unit, a direction and a meaning; old records are read by the names of today."""

import re

import pytest

from robust.metric_names.registry import REGISTRY, STAGES, find, threat_model_name
from tests import metrics_page


@pytest.mark.parametrize(
    ("name", "unit", "direction"),
    [
        ("val/accuracy/clean", "fraction", "higher is better"),
        ("test/accuracy/pgd/linf_0.1", "fraction", "higher is better"),
        ("test/accuracy/pgd/linf_0.1/std", "fraction", "none"),
        ("test/certified_accuracy/own_budgets", "fraction", "higher is better"),
        ("test/robustness_score/r2", "pixel units", "higher is better"),
        ("test/robustness_score/r4/normalized", "fraction", "higher is better"),
        ("test/robustness_score/r4/samples", "count", "none"),
        ("test/masking/failed_checks", "count", "lower is better"),
        ("train/loss", "none", "lower is better"),
        ("train/learning_rate_2", "none", "none"),
    ],
)
def test_metrics_have_a_unit_and_a_direction(name, unit, direction):
    info = find(name)
    assert (info.unit, info.direction) == (unit, direction)
    assert info.meaning


@pytest.mark.parametrize(
    "name", ["test/accuracy", "accuracy/clean", "test/accuracy/a/b/c", "test/clean_error", "epoch"]
)
def test_other_names_are_not_found(name):
    assert find(name) is None


def test_each_pattern_is_found_by_itself():
    """No pattern is hidden by an earlier one, and none is there twice."""
    assert len({info.pattern for info in REGISTRY}) == len(REGISTRY)
    for info in REGISTRY:
        name = re.sub("<([^>]*)>", lambda part: part[1].replace(" ", "_"), info.pattern)
        assert find(f"{STAGES[-1]}/{name}") is info


def test_names_of_balls():
    assert threat_model_name("linf", 8 / 255) == "linf_0.0313725"
    assert threat_model_name("l1", 12.0) == "l1_12"


def test_the_page_has_the_registry():
    assert metrics_page.PAGE.read_text() == metrics_page.current(), "run python -m tests.metrics_page"
