"""The matrices for a GPU in small, on a CPU, by the docs' command: each run trains and is tested, in two pieces."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml

from tests.testers import ROOT

SHAPES = {"mnist": (1, 28), "cifar10": (3, 32), "cifar10_half": (3, 16), "cifar10_half_noise": (3, 16)}
EVALUATION = {
    "trainer.callbacks": [
        {
            "class_path": "AdversarialEvaluation",
            "init_args": {"num_samples": 2, "attacks": {"fgsm": {"attack": "robust.attacks.FGSM"}}},
        }
    ]
}


def small(name, folder):
    """Write the matrix with one seed, a step an epoch and images of random pixels; return the names of its runs."""
    path = ROOT / "experiments" / "gpu" / f"{name}.yaml"
    matrix = yaml.safe_load(path.read_text())
    channels, size = SHAPES[name]
    draws = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = draws.integers(0, 256, (20, channels, size, size), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(20) % 10
    np.savez(folder / f"{name}.npz", **arrays)
    data = {"class_path": "Arrays", "init_args": {"path": f"{name}.npz", "batch_size": 4, "eval_batch_size": 4}}
    short = {"data": data, "trainer.callbacks": [], "trainer.limit_train_batches": 1, "trainer.limit_val_batches": 0}
    short |= {"trainer.max_epochs": 2} if name == "cifar10" else {}  # a step of ResNet-18 takes seconds

    def shortened(parts):
        parts = parts if isinstance(parts, list) else [parts]
        return [str((path.parent / part).resolve()) if isinstance(part, str) else part for part in [*parts, short]]

    matrix |= {"runs": {run: shortened(parts) for run, parts in matrix["runs"].items()}, "seeds": [0]}
    precision = [part for part in matrix["evaluation"] if part == {"trainer.precision": "32-true"}]
    matrix |= {"evaluation": [EVALUATION, *precision]}
    (folder / "experiments" / "gpu" / f"{name}.yaml").write_text(yaml.safe_dump(matrix))
    return [f"{matrix['results']}/{run}_0.json" for run in matrix["runs"]]


def checkout(folder):
    """A folder with the matrices and their data; return the folder and the files of all results."""
    (folder / "experiments" / "gpu").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "data" / "cifar10_half.npz").touch()
    return folder, [path for name in SHAPES for path in small(name, folder)]


def piece(folder, seconds):
    """Run the docs' block, with two processes; return its output."""
    text = (ROOT / "docs" / "experiments.md").read_text()
    (block,) = re.findall(r"```bash\n([^`]*timeout -s TERM[^`]*)```", text)
    for former, new in (
        ("uv run experiment.py", f"{sys.executable} {ROOT / 'experiment.py'}"),
        ("TERM 9m", f"TERM {seconds}s"),
        ("--processes 5", "--processes 2"),
    ):
        assert block.count(former) == 1
        block = block.replace(former, new)
    run = subprocess.run(
        ["bash", "-c", block],
        cwd=folder,
        env=os.environ | {"ROBUST_DATA": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr  # of tar
    return run.stdout + run.stderr


@pytest.mark.slow
def test_every_run_trains_and_is_tested_in_pieces(tmp_path):
    first, expected = checkout(tmp_path / "first")
    output = piece(first, 120)
    found = {path: (first / path).read_bytes() for path in expected if (first / path).is_file()}
    assert 0 < len(found) < len(expected), output
    second, _ = checkout(tmp_path / "second")
    shutil.move(first / "pieces.tgz", second)
    shutil.rmtree(first)
    output = piece(second, 3600)
    missing = [path for path in expected if not (second / path).is_file()]
    assert not missing, output
    assert all((second / path).read_bytes() == content for path, content in found.items()), "finished runs ran again"
