"""Every metric has a unit, a direction and a meaning; old records are read by the names of today."""

import re

import pytest

from robust.metric_names.old_names import TABLE, new_metrics, new_name
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


def settings(name, **arguments):
    return {"class_path": f"callbacks.{name}", "init_args": arguments}


BALL = settings("LinfBall", epsilon=0.3)
ATTACKS = {"pgd": {"attack": "PGD"}, "l2": {"threat_model": settings("L2Ball", epsilon=2.0), "group": "all"}}
ATTACKS["aa"] = {"norm": "linf", "epsilon": 0.1}
ATTACKS["own"] = {"threat_model": BALL}
CALLBACKS = [settings("AdversarialEvaluation", attacks=ATTACKS), settings("CertifiedEvaluation", pgd_steps=20)]
CALLBACKS += [settings("WeightedMinimaxEvaluation", epsilon=0.05), settings("AccuracyCurve", norm="l2")]
CALLBACKS += [settings("GradientMaskingChecks", epsilon=0.06), "callbacks.GroupAccuracy"]
CONFIG = {"model": settings("ContextualBudgets", epsilon=0.4), "trainer": {"callbacks": CALLBACKS}}
OLD = {
    "train/loss": 2.0,
    "test/clean_error": 0.25,
    "test/accuracy/clean": 0.7,
    "test/verified_error/learned": 0.5,
    "test/verified_error/uniform": 0.75,
    "test/verified_error/uniform/epsilon_0.2": None,
    "test/verified_error/learned/epsilon_0.2": 1.0,
    "test/pgd_error/uniform": 0.625,
    "test/verified_error/certified_volume/low": 0.125,
    "test/verified_error/certified_volume_capped/epsilon_0.1": 0.5,
    "test/budget/min": 0.1,
    "test/budget/theirs/max/epsilon_0.2": 0.1,
    "test/budget_region/learned/watermark": 0.1,
    "test/accuracy/pgd/uniform": 0.1,
    "test/accuracy/pgd/learned/eot/std": 0.1,
    "test/accuracy/pgd/uniform/noise_off": 0.1,
    "test/accuracy/l2": 0.1,
    "test/accuracy/aa/vote": 0.1,
    "test/accuracy/aa/deviation": 0.1,
    "test/r2_share/fgsm": 0.1,
    "test/accuracy/own": 0.1,
    "test/accuracy/all": 0.1,
    "test/accuracy/union": 0.1,
    "test/accuracy/fog": 0.1,
    "test/accuracy/mean": 0.1,
    "test/recomputed_samples": 3.0,
    "test/a_rob": 0.1,
    "test/a_sa/alpha_1.5/effective_samples": 90.0,
    "test/r2_fraction/bg": 0.1,
    "test/r2": 0.1,
    "test/r4_normalized": 0.1,
    "test/masking/pgd": 0.1,
    "test/masking/pgd/epsilon_0.12": 0.1,
    "test/masking/failed_checks": 0.0,
    "test/accuracy_curve/fgsm/0.5/std": 0.1,
}
NEW = {
    "train/loss": 2.0,
    "test/accuracy/clean": 0.75,
    "test/accuracy/clean/attacked": 0.7,
    "test/certified_accuracy/own_budgets": 0.5,
    "test/certified_accuracy/linf_0.4": 0.25,
    "test/certified_accuracy/linf_0.2": None,
    "test/certified_accuracy/own_budgets_0.2": 0.0,
    "test/accuracy/pgd_20/linf_0.4": 0.375,
    "test/certified_accuracy/volume_0.4/high": 0.875,
    "test/certified_accuracy/capped_volume_0.1": 0.5,
    "test/budget/own_budgets/min": 0.1,
    "test/budget/theirs_0.2/max": 0.1,
    "test/budget_region/own_budgets/watermark": 0.1,
    "test/accuracy/pgd/linf_0.4": 0.1,
    "test/accuracy/pgd_eot/own_budgets/std": 0.1,
    "test/accuracy/pgd_mean_network/linf_0.4/noise_off": 0.1,
    "test/accuracy/l2/l2_2": 0.1,
    "test/accuracy/aa/linf_0.1/vote": 0.1,
    "test/accuracy/aa/linf_0.1/std": 0.1,
    "test/robustness_score/r2/closest/fgsm": 0.1,
    "test/accuracy/own/linf_0.3": 0.1,
    "test/accuracy/worst/all": 0.1,
    "test/accuracy/union": 0.1,
    "test/accuracy/group/fog": 0.1,
    "test/accuracy/group/mean": 0.1,
    "test/recomputed_samples/all": 3.0,
    "test/accuracy/a_rob/linf_0.05": 0.1,
    "test/weighted_accuracy/a_sa/linf_0.05/alpha_1.5/effective_samples": 90.0,
    "test/robustness_score/r2/closest/bg": 0.1,
    "test/robustness_score/r2": 0.1,
    "test/robustness_score/r4/normalized": 0.1,
    "test/masking/accuracy/pgd/linf_0.06": 0.1,
    "test/masking/accuracy/pgd/linf_0.12": 0.1,
    "test/masking/failed_checks": 0.0,
    "test/accuracy_curve/fgsm/l2_0.5/std": 0.1,
}


def test_an_old_record_is_read_by_its_settings():
    assert new_metrics(OLD, CONFIG) == NEW
    assert new_metrics(NEW, CONFIG) == NEW, "names of today stay"
    assert all(find(name) for name in NEW)


def test_a_module_in_one_norm_or_in_three_has_the_sizes_of_its_settings():
    attacked = {"trainer": {"callbacks": [settings("AdversarialEvaluation", attacks={"pgd": {"attack": "PGD"}})]}}
    one = attacked | {"model": settings("AdversarialTraining", epsilon=0.5, norm="l2")}
    old, new = {"val/clean_error": 0.25}, {"val/accuracy/clean": 0.75}
    assert new_metrics(old | {"val/accuracy/pgd": 0.5}, one) == new | {"val/accuracy/pgd/l2_0.5": 0.5}
    three = attacked | {"model": settings("MNGAC", epsilon=0.1, epsilon_l2=1.5, epsilon_l1=12.0)}
    assert new_metrics(old | {"val/accuracy/pgd/l1": 0.5}, three) == new | {"val/accuracy/pgd/l1_12": 0.5}


def test_every_old_name_has_a_new_one_in_the_registry():
    for old, new, _ in TABLE:
        name = re.sub("<[^>]*>", "x", new.replace("<end>", "min").replace("<part>", "samples"))
        assert find(f"val/{name}"), (old, new)
    assert new_name("val/clean_error") == "val/accuracy/clean"
    assert new_name("val/verified_error/learned") == "val/certified_accuracy/own_budgets"
    assert new_name("val/accuracy/clean") is None
