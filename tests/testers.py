"""Two checks of every method on the command line: exact resumption, and equality of any number of processes.

A method is given by ``settings``, the command line's arguments after the subcommand: a config file, and overrides that
make it small. Call both testers for each new method, with every kind of random draw and optimizer that it has.
"""

import json
import warnings
from pathlib import Path

import pytest
import torch

import train
from callbacks import Checkpoint
from robust.metric_names.registry import find
from tests.two_processes import run_together

ROOT = Path(__file__).parents[1]
PARTS = ("global_step", "state_dict", "optimizer_states", "lr_schedulers")  # of a checkpoint
WHERE = ("epoch", "last batch", "middle")  # a run is resumed from there
QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
QUIET += ["--trainer.num_sanity_val_steps=0"]
DDP = "--trainer.strategy=ddp_find_unused_parameters_true"


class KilledError(Exception):
    """Ends a run as if it were killed."""


class EveryBatch(Checkpoint):
    """Saves a checkpoint after each batch, and nothing of its own in one: a run without it resumes from them."""

    def __init__(self, folder: str) -> None:
        super().__init__(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)

    def state_dict(self):
        return {}


def error_of(arguments, capsys):
    """The one line on standard error with which a command line ends, without its beginning."""
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SystemExit) as stop:
            train.main(arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def run(command, settings, folder, accelerator="cpu"):
    """Run the command line here, and return the outcome in ``folder``."""
    where = [f"--trainer.accelerator={accelerator}", f"--trainer.default_root_dir={folder}"]
    train.main([command, *settings, *QUIET, *where])
    return outcome(folder)


def outcome(folder):
    """The last checkpoint (None if there is none) and the results."""
    path = last_checkpoint(folder)
    checkpoint = torch.load(path, weights_only=True) if path.exists() else None
    return checkpoint, results_in(folder / "results.json")


def results_in(path):
    """The last record of a run, with the metrics and sizes of all its records."""
    records = list(json.loads(path.read_text()).values())
    together = {part: {k: v for record in records for k, v in record[part].items()} for part in ("metrics", "samples")}
    return records[-1] | together


def last_checkpoint(folder):
    return folder / "checkpoints" / "last.ckpt"


def assert_resume_is_identical(settings, tmp_path, batches_per_epoch, epochs=2, where=WHERE):
    """A run that resumes from any checkpoint ends bit for bit like the one that wrote it.

    Resumed is from the end of an epoch, from its last batch and from the middle of the next, with and without loader
    workers, also with another seed. Settings should put this into the ramp, leave an epoch behind it, and have
    learning-rate schedules.

    Args:
        settings: arguments of ``fit``.
        tmp_path: an empty folder.
        batches_per_epoch: what the settings give, at least 2.
        epochs: number of them after which the first checkpoints are.
        where: some of :data:`WHERE`.
    """
    batches = tmp_path / "batches"
    save = ["--checkpoint.save_top_k=-1", f"--trainer.callbacks+={__name__}.EveryBatch"]
    whole, _ = run("fit", [*settings, *save, f"--trainer.callbacks.folder={batches}"], tmp_path / "whole")
    end = epochs * batches_per_epoch
    middle = end + batches_per_epoch // 2
    for name, checkpoint, workers, seed in (
        ("epoch", tmp_path / "whole" / "checkpoints" / f"epoch={epochs - 1}.ckpt", 0, 1),
        ("last batch", batches / f"step={end}.ckpt", 0, 0),
        ("middle", batches / f"step={middle}.ckpt", 2, 1),
    ):
        if name not in where:
            continue
        assert torch.load(checkpoint, weights_only=True)["global_step"] == (middle if name == "middle" else end)
        resumed = [f"--ckpt_path={checkpoint}", f"--data.num_workers={workers}", f"--seed_everything={seed}"]
        again, _ = run("fit", [*settings, *resumed], tmp_path / name)
        assert_ends_equal(again, whole, name)


def assert_ends_equal(one, other, where="end"):
    """Two checkpoints hold the same training, bit for bit: :data:`PARTS`, and the radii of the method that has them."""
    assert ("radii" in one) == ("radii" in other)
    for part in (*PARTS, *({"radii"} & one.keys())):
        assert_equal(one[part], other[part], f"{where}: {part}")


def assert_equal(one, other, where):
    """Nested lists and dicts of tensors and plain values are the same, bit for bit."""
    if isinstance(one, dict | list):
        keys = one.keys() if isinstance(one, dict) else range(len(one))
        assert len(one) == len(other), where
        for key in keys:
            assert_equal(one[key], other[key], f"{where}.{key}")
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, where


def assert_any_number_of_processes_agrees(settings, tmp_path, counts=(2, 3), tolerance=1e-8):
    """Two and three processes (gloo, CPU) train to the weights of one, and log the same (float32) at the last step.

    Args:
        settings: arguments of ``fit``, of a batch size that the counts divide, in float64.
        tmp_path: an empty folder.
        counts: numbers of processes.
        tolerance: largest difference of a weight, whose sums over the batch processes round differently.
    """
    whole, logged = run("fit", settings, tmp_path / "1")
    curves = {name: value for name, value in logged["metrics"].items() if name.startswith("train/")}
    assert "train/loss" in curves
    for count in counts:
        parts, logged = several_processes(count, "fit", settings, tmp_path / str(count))
        assert parts["global_step"] == whole["global_step"]
        for name, weight in whole["state_dict"].items():
            difference = (parts["state_dict"][name] - weight).abs().max()
            assert difference <= tolerance, f"{name} differs by {difference} in {count} processes"
        assert {name: logged["metrics"][name] for name in curves} == pytest.approx(curves, rel=1e-5)


def two_processes(command, settings, folder):
    """Run the command line in two processes, and return the outcome in ``folder``."""
    return several_processes(2, command, settings, folder)


def several_processes(count, command, settings, folder):
    """Run the command line in so many processes, and return the outcome in ``folder``."""
    where = [f"--trainer.devices={count}", DDP, f"--trainer.default_root_dir={folder}"]
    run_together([command, *settings, *QUIET, *where], count)
    return outcome(folder)


def assert_registered(metrics):
    """Each metric, by name with its stage, is in the registry."""
    assert [name for name in metrics if find(name) is None] == [], "add them to robust/metric_names/registry.py"
