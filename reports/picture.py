"""A report as one picture: the accuracies of each row on one scale, or clean against robust accuracy."""

from __future__ import annotations

import re
from typing import Any

import altair as alt
import vl_convert

from reports.charts import PALETTE, front_layers, look_of, pareto_fronts
from reports.report import Report
from robust.errors import require

WIDTH = 520  # width of the scale in pixels
WIDER = 60  # margin in pixels for fonts that are wider than the font by which texts are placed


def svg(report: Report) -> str:
    """Clean, certified and attacked accuracy of each row, the most robust first; lines show one std over seeds.

    The accuracies are those without perturbation, certified in each threat model, under the worst attack of each group
    of attacks, and under all attacks. Rows are sorted by the last of these that at least half of the rows have.
    """
    metrics = _metrics(report)
    points = [
        {"row": row.label, "metric": short, "accuracy": value.mean, "std": value.std or 0.0}
        for row in report.rows
        for name, short in metrics.items()
        if (value := row.value(name)) is not None
    ]
    order = _order(report, list(metrics))
    chart = _chart(points, list(metrics.values()), order)
    text: str = vl_convert.vegalite_to_svg(chart)
    return text + "\n"


def front(report: Report, metric: str) -> str:
    """Clean accuracy against another accuracy of each row, mean over seeds, with a line along the Pareto front.

    Args:
        report: rows with their metrics.
        metric: the other accuracy, without the stage: certified in a threat model, or under an attack.

    Raises:
        SettingError: if no row has both accuracies.
    """
    points = pareto_fronts(report.rows, report.stage)
    known = ", ".join(dict.fromkeys(point["metric"] for point in points)) or "they have none beside accuracy/clean"
    points = [point for point in points if point["metric"] == metric]
    require(bool(points), "front", metric, f"give an accuracy of the runs: {known}")
    look = look_of("row", list(dict.fromkeys(point["row"] for point in points)))
    chart = front_layers(alt.Chart({"values": points}), look, metric)
    chart = chart.properties(width=WIDTH, height=WIDTH // 2, background="white")
    text: str = vl_convert.vegalite_to_svg(chart.configure_legend(orient="bottom", labelLimit=WIDTH).to_dict())
    return text + "\n"


def _metrics(report: Report) -> dict[str, str]:
    """Short names of the metrics that are shown, by their names."""
    shown = ("accuracy/clean", "certified_accuracy/[^/]+", "accuracy/worst/[^/]+", "accuracy/union")
    names = [name for pattern in shown for name, _ in report.columns if re.fullmatch(f"[^/]+/{pattern}", name)]
    return {name: report.short(name) for name in names}


def _order(report: Report, metrics: list[str]) -> list[str]:
    """Labels of the rows, sorted by their mean in the last metric, the largest first."""
    last = next(
        (name for name in reversed(metrics) if 2 * sum(name in row.metrics for row in report.rows) >= len(report.rows)),
        "",
    )
    means = {row.label: value.mean if (value := row.value(last)) else -1.0 for row in report.rows}
    return sorted(means, key=lambda label: -means[label])


def _chart(points: list[dict[str, Any]], metrics: list[str], order: list[str]) -> dict[str, Any]:
    base = alt.Chart({"values": points}).encode(
        y=alt.Y("row:N", sort=order, title=None, axis=alt.Axis(labelLimit=320, grid=True)),
        color=alt.Color("metric:N", title=None, scale=alt.Scale(domain=metrics, range=PALETTE[: len(metrics)])),
    )
    ends = base.transform_calculate(low="max(datum.accuracy - datum.std, 0)", high="min(datum.accuracy + datum.std, 1)")
    scale = alt.X("accuracy:Q", title="accuracy", scale=alt.Scale(domain=[0, 1]))
    lines = ends.mark_rule(strokeWidth=2, opacity=0.6).encode(x=alt.X("low:Q", title="accuracy"), x2="high:Q")
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=scale, shape=alt.Shape("metric:N", title=None, scale=alt.Scale(domain=metrics))
    )
    chart = (lines + dots).properties(width=WIDTH, height=alt.Step(20), background="white")
    chart = chart.properties(padding={"left": WIDER, "right": WIDER, "top": 5, "bottom": 5})
    legend = {"orient": "bottom", "columns": 3, "labelLimit": 200, "columnPadding": WIDER}
    specification: dict[str, Any] = chart.configure_legend(**legend).to_dict()
    return specification
