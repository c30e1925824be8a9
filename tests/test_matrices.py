"""The matrices for a GPU in small, on a CPU: each run trains and is tested, in two pieces and two folders."""

import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from tests.testers import ROOT

SHAPES = {"mnist_gpu": (1, 28), "cifar10_half": (3, 16), "cifar10_half_noise": (3, 16), "cifar10": (3, 32)}
EVALUATION = {
    "trainer.callbacks": [
        {
            "class_path": "AdversarialEvaluation",
            "init_args": {"num_samples": 2, "attacks": {"fgsm": {"attack": "robust.attacks.FGSM"}}},
        }
    ]
}
pytestmark = pytest.mark.slow


def small(name, folder):
    """Write the matrix with one seed, a step an epoch and images of random pixels; return the number of its runs."""
    path = ROOT / "experiments" / f"{name}.yaml"
    matrix = yaml.safe_load(path.read_text())
    channels, size = SHAPES[name]
    draws = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = draws.integers(0, 256, (20, channels, size, size), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(20) % 10
    np.savez(folder / "images.npz", **arrays)
    data = {"class_path": "Arrays", "init_args": {"path": "images.npz", "batch_size": 4, "eval_batch_size": 4}}
    short = {"data": data, "trainer.callbacks": [], "trainer.limit_train_batches": 1, "trainer.limit_val_batches": 0}

    def shortened(parts):
        parts = parts if isinstance(parts, list) else [parts]
        return [str((path.parent / part).resolve()) if isinstance(part, str) else part for part in [*parts, short]]

    matrix |= {"runs": {run: shortened(parts) for run, parts in matrix["runs"].items()}, "seeds": [0]}
    precision = [part for part in matrix["evaluation"] if part == {"trainer.precision": "32-true"}]
    matrix |= {"folder": "logs", "results": "results", "evaluation": [EVALUATION, *precision]}
    (folder / "matrix.yaml").write_text(yaml.safe_dump(matrix))
    return len(matrix["runs"])


def started(folder):
    command = [sys.executable, str(ROOT / "experiment.py"), "matrix.yaml", "--processes", "1"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(matrix, seconds):
    """The output of a process at its end; it is killed if it takes longer."""
    try:
        return matrix.communicate(timeout=seconds)[0]
    finally:
        matrix.kill()


@pytest.mark.parametrize("name", SHAPES)
def test_every_run_trains_and_is_tested_in_pieces(name, tmp_path):
    (tmp_path / "first").mkdir()
    runs = small(name, tmp_path / "first")
    matrix = started(tmp_path / "first")
    while not list((tmp_path / "first" / "logs").glob("*/seed_0/checkpoints/last.ckpt")):
        assert matrix.poll() is None, matrix.stdout.read()
        time.sleep(0.1)
    matrix.terminate()
    output = ended(matrix, 120)
    assert matrix.returncode == 130, output
    shutil.move(tmp_path / "first", tmp_path / "second")
    matrix = started(tmp_path / "second")
    output = ended(matrix, 1800)
    assert matrix.returncode == 0, output
    assert len(list((tmp_path / "second" / "results").glob("*_0.json"))) == runs
