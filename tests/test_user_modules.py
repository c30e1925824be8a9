"""Modules of the user's, in the folder where the command line is called."""

import subprocess
import sys

import pytest

from cli.user_modules import checkout_names
from tests.testers import QUIET, ROOT, results_in

NETWORK = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, width: int = 4) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
"""
SMALL = ["--data=Digits", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]


def run_in(folder, classifier):
    """Run ``fit`` as users do who call it from another folder."""
    program = [
        sys.executable,
        str(ROOT / "train.py"),
        "fit",
        "--model=StandardTraining",
        f"--model.classifier={classifier}",
    ]
    return subprocess.run([*program, *SMALL, *QUIET], cwd=folder, capture_output=True, text=True, timeout=120)


def test_a_network_in_the_folder_of_the_call_is_found(tmp_path):
    (tmp_path / "my_networks.py").write_text(NETWORK)
    done = run_in(tmp_path, "my_networks.Net")
    assert done.returncode == 0, done.stderr
    assert results_in(tmp_path / "results.json")["method"] == "StandardTraining"


def test_the_folder_hides_no_installed_package(tmp_path):
    (tmp_path / "my_networks.py").write_text(NETWORK)
    (tmp_path / "random.py").write_text("raise RuntimeError('the wrong module')")
    (tmp_path / "yaml.py").write_text("raise RuntimeError('the wrong module')")
    (tmp_path / "train" / "dog").mkdir(parents=True)  # data, no package
    done = run_in(tmp_path, "my_networks.Net")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["callbacks.py", "robust/networks.py"])
def test_a_module_of_a_name_that_the_checkout_takes_is_an_error_in_one_line(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(NETWORK)
    done = run_in(tmp_path, f"{name.removesuffix('.py').replace('/', '.')}.Net")
    clash = name.split("/")[0]
    remedy = "robust-lightning has a module of this name; rename yours"
    assert done.returncode == 2
    assert done.stderr == f"error: {clash.removesuffix('.py')}: got '{tmp_path / clash}'; {remedy}\n"


def test_the_checkouts_names_are_those_of_its_layers():
    layers = {"callbacks", "cli", "datamodules", "lightning_modules", "robust", "train"}
    assert layers <= set(checkout_names())
    assert {"tests", "docs", "configs"}.isdisjoint(checkout_names()), "users have folders of these names"
