"""The charts of a report in Vega-Lite; text and axes have the page's colour, which suits light, dark and print."""

from __future__ import annotations

import re
from typing import Any

import altair as alt

from reports.curves import Curve
from reports.rows import Row

Points = list[dict[str, Any]]
Look = dict[str, Any]  # encodings of colour and shape
MOST_COLORS = 10  # with more rows, a colour stands for a method instead of a row
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
# Okabe and Ito's colours without black and yellow, and four others; each is visible on white and on nearly black
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8b6fd1", "#7f8c1f", "#d6455d", "#7a8794"]
_TEXT = {"labelColor": "currentColor", "titleColor": "currentColor"}
_CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": "transparent"},
    "axis": {
        **_TEXT,
        "gridColor": "currentColor",
        "gridOpacity": 0.15,
        "domainColor": "currentColor",
        "tickColor": "currentColor",
        "labelLimit": 200,
    },
    "legend": {**_TEXT, "orient": "bottom", "columns": 1, "labelLimit": 260, "titleLimit": 280, "symbolLimit": 0},
}


def pareto_fronts(rows: list[Row], stage: str) -> Points:
    """Clean accuracy against each certified and attacked accuracy; ``front`` marks rows that no other row dominates."""
    points: Points = []
    clean = f"{stage}/accuracy/clean"
    robust = {name for row in rows for name in row.metrics if _is_robust(name, stage)}
    for metric in sorted(robust, key=lambda name: ("certified" not in name, name)):
        pairs = [(row, row.value(clean), row.value(metric)) for row in rows]
        known = [(row, x.mean, y.mean) for row, x, y in pairs if x is not None and y is not None]
        compared = {(round(x, 6), round(y, 6)) for _, x, y in known}  # means of equal counts may differ
        for row, x, y in known:
            own = (round(x, 6), round(y, 6))
            dominated = any(a >= own[0] and b >= own[1] for a, b in compared - {own})
            point = {"metric": metric.removeprefix(f"{stage}/"), "clean": x, "robust": y, "front": not dominated}
            points.append(point | _who(row))
    return points


def by_epsilon(rows: list[Row], stage: str) -> Points:
    """Certified accuracy and accuracy under each attack over the balls' size, for curves of at least two sizes."""
    points: Points = []
    for row in rows:
        clean = row.value(f"{stage}/accuracy/clean")
        for name in row.metrics:
            match = re.fullmatch(
                rf"{stage}/(certified_accuracy|accuracy/[^/]+|accuracy_curve/[^/]+)/(linf|l2|l1)_([\d.e-]+)", name
            )
            value = row.value(name)
            if match is None or value is None:
                continue
            points.append(
                {"curve": f"{match[1]}, {match[2]}", "epsilon": float(match[3]), "accuracy": value.mean, **_who(row)}
            )
        ours = dict.fromkeys(point["curve"] for point in points if point["row"] == row.label)
        zero = [{"curve": curve, "epsilon": 0.0, "accuracy": clean.mean, **_who(row)} for curve in ours if clean]
        points += [
            point
            for point in zero
            if not any(point["curve"] == p["curve"] and p["row"] == row.label and p["epsilon"] == 0 for p in points)
        ]
    sizes = {
        curve: {p["epsilon"] for p in points if p["curve"] == curve} - {0.0} for curve in {p["curve"] for p in points}
    }
    return [point for point in points if len(sizes[point["curve"]]) > 1]


def margins(rows: list[Row]) -> Points:
    """Fraction of images whose certified margin is at least a value, in the first run of each row."""
    points: Points = []
    for row in rows:
        for metric, quantiles in row.runs[0].margins().items():
            last = max(len(quantiles) - 1, 1)
            for index, margin in enumerate(quantiles):
                point = {"metric": metric, "margin": margin, "fraction": 1 - index / last, **_who(row)}
                points.append(point)
    return points


def training(rows: list[Row], curves: dict[int, list[Curve]]) -> Points:
    """Points of training curves; ``curves`` has those of the first run of each row, by the row's index."""
    return [
        {"metric": curve.metric, "step": step, "value": value, **_who(rows[index])}
        for index, of_row in curves.items()
        for curve in of_row
        for step, value in zip(curve.steps, curve.values, strict=True)
    ]


def draw(
    rows: list[Row], fronts: Points, sizes: Points, certified_margins: Points, curves: Points
) -> dict[str, dict[str, Any]]:
    """Vega-Lite specifications by the name of the chart, without charts that have no points."""
    field = "row" if len(rows) <= MOST_COLORS else "method"
    names = list(dict.fromkeys(row.label if field == "row" else row.method for row in rows))
    look = look_of(field, names)
    margin, fraction = ("margin:Q", "certified margin (logits)"), ("fraction:Q", "fraction of images")
    charts = {
        "pareto": _pareto(fronts, look),
        "epsilon": _lines(sizes, look, ("epsilon:Q", "ε (pixel units)"), ("accuracy:Q", "accuracy"), "curve"),
        "margins": _lines(certified_margins, look, margin, fraction, "metric"),
        "training": _lines(curves, look, ("step:Q", "step"), ("value:Q", "value"), "metric"),
    }
    data = {"pareto": fronts, "epsilon": sizes, "margins": certified_margins, "training": curves}
    return {name: chart.to_dict() for name, chart in charts.items() if data[name]}


def look_of(field: str, names: list[str]) -> Look:
    """Colour and shape of each name; with more names than colours, names of one colour differ in their shape."""
    few = len(names) <= len(PALETTE)
    colors = alt.Scale(domain=names, range=PALETTE) if few else alt.Scale(domain=names, scheme="tableau20")
    legend = alt.Legend(columns=1 if few else 2)
    return {
        "color": alt.Color(f"{field}:N", title=None, scale=colors, legend=legend),
        "shape": alt.Shape(f"{field}:N", title=None, scale=alt.Scale(domain=names, range=SHAPES), legend=legend),
    }


def _who(row: Row) -> dict[str, str]:
    return {"row": row.label, "method": row.method}


def _is_robust(name: str, stage: str) -> bool:
    metric = name.removeprefix(f"{stage}/")
    parts = metric.split("/")
    if not name.startswith(f"{stage}/") or metric in ("accuracy/clean", "accuracy/average"):
        return False
    certified = parts[0] == "certified_accuracy" and len(parts) == 2
    return (
        certified or metric == "accuracy/union" or (parts[0] == "accuracy" and len(parts) == 3 and parts[1] != "clean")
    )


def _pareto(points: Points, look: Look) -> alt.LayerChart:
    chosen, shown = _dropdown("metric", points)
    base = alt.Chart(alt.InlineData(values=points)).transform_filter(shown)
    return _finished(front_layers(base, look, "robust accuracy").add_params(chosen))


def front_layers(base: alt.Chart, look: Look, title: str) -> alt.LayerChart | alt.FacetChart:
    """The points of :func:`pareto_fronts`, of one metric, with a line along the front; ``title`` is the metric's."""
    scale, axis = alt.Scale(zero=False, padding=12), alt.Axis(format="%")
    x = alt.X("clean:Q", title="clean accuracy", scale=scale, axis=axis)
    y = alt.Y("robust:Q", title=title, scale=scale, axis=axis)
    line = base.transform_filter("datum.front").mark_line(color="currentColor", opacity=0.5, strokeDash=[4, 3])
    dots = base.mark_point(filled=True, size=110, opacity=0.95, strokeWidth=2)
    tooltip = ["row:N", alt.Tooltip("clean:Q", format=".2%"), alt.Tooltip("robust:Q", format=".2%")]
    outline = alt.condition("datum.front", alt.value("currentColor"), alt.value("transparent"))
    return alt.layer(
        line.encode(x=x, y=y, order="clean:Q"), dots.encode(x=x, y=y, stroke=outline, tooltip=tooltip, **look)
    )


def _lines(points: Points, look: Look, x: tuple[str, str], y: tuple[str, str], choice: str) -> alt.LayerChart:
    """Lines of the field ``y`` over the field ``x``, each given with its title; ``choice`` is that of the dropdown."""
    chosen, shown = _dropdown(choice, points)
    base = alt.Chart(alt.InlineData(values=points)).transform_filter(shown)
    line = base.mark_line(point=alt.OverlayMarkDef(size=30), strokeWidth=2).encode(
        x=alt.X(x[0], title=x[1]),
        y=alt.Y(y[0], title=y[1]),
        detail="row:N",
        tooltip=["row:N", x[0], alt.Tooltip(y[0], format=".4")],
        **look,
    )
    return _finished(alt.layer(line).add_params(chosen))


def _dropdown(field: str, points: Points) -> tuple[alt.Parameter, Any]:
    """A dropdown of the field's values, the most common in the rows first, and the filter for the chosen points."""
    rows: dict[str, set[str]] = {}
    for point in points:
        rows.setdefault(point[field], set()).add(point["row"])
    options = sorted(rows, key=lambda option: -len(rows[option]))
    chosen = alt.param(
        name=f"chosen_{field}",
        value=options[0] if options else "",
        bind=alt.binding_select(options=options, name=f"{field} "),
    )
    return chosen, f"datum.{field} == {chosen.name}"


def _finished(chart: alt.LayerChart | alt.FacetChart) -> alt.LayerChart:
    finished: alt.LayerChart = chart.properties(width="container", height=300).configure(**_CONFIG)
    return finished
