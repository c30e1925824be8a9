"""Training curves from the event files of TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass

from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

from reports.runs import Run

MOST_POINTS = 60
_NONE_OF = {"compressedHistograms": 1, "images": 1, "audio": 1, "histograms": 1, "tensors": 1}
_SHOWN = ("train/loss", "val/accuracy/clean", "val/certified_accuracy/", "val/accuracy/")


@dataclass(frozen=True)
class Curve:
    """A metric over the steps of a training, at most 60 points."""

    metric: str
    steps: list[int]
    values: list[float]


def read_curves(run: Run) -> list[Curve]:
    """Loss and validation accuracies of a run; empty if the run's folder is absent."""
    if run.folder is None or not any(run.folder.glob("events.out.tfevents.*")):
        return []
    events = EventAccumulator(str(run.folder), size_guidance={SCALARS: 0, **_NONE_OF})  # type: ignore[no-untyped-call]
    events.Reload()  # type: ignore[no-untyped-call]
    tags: list[str] = events.Tags()[SCALARS]  # type: ignore[no-untyped-call]
    curves = []
    for tag in tags:
        if tag.startswith(_SHOWN):
            points = _thinned([(scalar.step, scalar.value) for scalar in events.Scalars(tag)])  # type: ignore[no-untyped-call]
            curves.append(Curve(tag, [step for step, _ in points], [value for _, value in points]))
    return curves


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most 60 evenly spaced points, including the first and the last."""
    if len(points) <= MOST_POINTS:
        return points
    indices = {round(index * (len(points) - 1) / (MOST_POINTS - 1)) for index in range(MOST_POINTS)}
    return [points[index] for index in sorted(indices)]
