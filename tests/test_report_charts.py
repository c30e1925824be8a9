"""Charts of many methods: each has a look of its own, and the legend shows them all."""

import itertools

import numpy as np
import pytest
import vl_convert

from reports import charts
from reports.report import make_report
from tests.recorded_runs import ATTACKED, CLEAN, write_run


def drawn(folder, count):
    """The chart of clean against attacked accuracy of so many methods."""
    for index in range(count):
        write_run(folder / f"{index:02}", f"Method{index:02}", metrics={CLEAN: 0.9 + index / 1000, ATTACKED: 0.5})
    rows = make_report([folder], "test", None).rows
    return charts.draw(rows, charts.pareto_fronts(rows, "test"), [], [], [])["pareto"]


@pytest.mark.parametrize("count", [4, 24])
def test_the_legend_shows_every_method(tmp_path, count):
    picture = vl_convert.vegalite_to_svg(drawn(tmp_path, count) | {"width": 600})
    assert all(f"Method{index:02}" in picture for index in range(count))
    assert " entries" not in picture, "Vega writes so where it cuts a legend"


def test_no_two_methods_have_one_colour_and_one_shape(tmp_path):
    looks = [layer["encoding"] for layer in drawn(tmp_path, 24)["layer"] if "shape" in layer["encoding"]]
    (look,) = looks
    assert look["color"]["scale"]["scheme"] == "tableau20"
    shapes = look["shape"]["scale"]["range"]
    assert len(set(zip(itertools.cycle(range(20)), itertools.islice(itertools.cycle(shapes), 24), strict=False))) == 24


def test_curves_of_two_evaluations_are_two(tmp_path):
    """Regression: attacks of one name, perhaps with other settings, were joined to one curve."""
    metrics = {CLEAN: 0.9, ATTACKED: 0.5, "test/accuracy/pgd/linf_0.2": 0.3}
    metrics |= {f"test/accuracy_curve/pgd/linf_{epsilon}": 0.6 - epsilon for epsilon in (0.05, 0.15)}
    write_run(tmp_path / "run", metrics=metrics)
    points = charts.by_epsilon(make_report([tmp_path], "test", None).rows, "test")
    sizes = {}
    for point in points:
        sizes.setdefault(point["curve"], []).append(point["epsilon"])
    assert {curve: sorted(each) for curve, each in sizes.items()} == {
        "accuracy/pgd, linf": [0.0, 0.1, 0.2],
        "accuracy_curve/pgd, linf": [0.0, 0.05, 0.15],
    }


def test_rows_of_equal_counts_are_compared_as_equal(tmp_path):
    """Regression: means of float32 values differed in their last digits, and a beaten row was on the front."""
    accuracies = {"A": ((46, 46), (30, 30)), "B": ((45, 47), (31, 31))}
    for name, (clean, attacked) in accuracies.items():
        for seed in (0, 1):
            metrics = {CLEAN: float(np.float32(clean[seed] / 50)), ATTACKED: float(np.float32(attacked[seed] / 50))}
            write_run(tmp_path / f"{name}{seed}", name, seed=seed, metrics=metrics)
    points = charts.pareto_fronts(make_report([tmp_path], "test", None).rows, "test")
    assert {point["row"]: point["front"] for point in points} == {"A": False, "B": True}
