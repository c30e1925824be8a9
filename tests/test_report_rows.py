"""report.py: which runs are one row, as seeds of one experiment."""

import json

import pytest

from tests.recorded_runs import rows, write_run


def write_selected(folder, seed, epoch):
    """A training whose test is of the checkpoint of an epoch."""
    file = write_run(folder, seed=seed) / "results.json"
    records = json.loads(file.read_text())
    records["test"]["checkpoint"] = str(folder / "checkpoints" / f"epoch={epoch}.ckpt")
    file.write_text(json.dumps(records))


def test_checkpoints_that_were_selected_in_other_epochs_are_one_row(tmp_path):
    for seed, epoch in enumerate((37, 41, 33)):
        write_selected(tmp_path / f"seed{seed}", seed, epoch)
    tested = [row for row in rows(tmp_path).values() if row["metrics"]]
    assert [len(row["runs"]) for row in tested] == [3]
    write_selected(tmp_path / "again", 0, 41)  # the name says which of two selected checkpoints of a seed belongs where
    tested = [row for row in rows(tmp_path).values() if row["metrics"]]
    assert sorted(len(row["runs"]) for row in tested) == [1, 1, 2]


def test_checkpoints_that_were_selected_by_other_metrics_are_other_rows(tmp_path):
    """Regression: their mean was reported, as if they were seeds."""
    for seed, monitor in enumerate(("val/accuracy/clean", "val/certified_accuracy/linf_0.1")):
        write_selected(tmp_path / str(seed), seed, 1)
        file = tmp_path / str(seed) / "results.json"
        records = json.loads(file.read_text())
        for record in records.values():
            record["config"]["checkpoint"] = {"monitor": monitor}
        file.write_text(json.dumps(records))
    assert [len(row["runs"]) for row in rows(tmp_path).values() if row["metrics"]] == [1, 1]


@pytest.mark.parametrize(("scheduler", "count"), [("ReduceLROnPlateau", 2), ("torch.optim.lr_scheduler.StepLR", 1)])
def test_validations_that_change_the_rate_distinguish_rows(tmp_path, scheduler, count):
    """Regression: trainings whose rates fell after other numbers of validations were one row, as if they were seeds."""
    for interval in (0.5, 1.0):
        folder = write_run(tmp_path / str(interval), model={"lr_scheduler": {"class_path": scheduler}})
        records = json.loads((folder / "results.json").read_text())
        for record in records.values():
            record["config"]["trainer"]["val_check_interval"] = interval
            record["seed"] = int(interval)
        (folder / "results.json").write_text(json.dumps(records))
    assert len(rows(tmp_path)) == count
