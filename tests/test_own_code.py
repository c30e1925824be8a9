"""docs/own_code.md and docs/own_network.md: their files and commands, as a user has them, in another folder."""

import re
import shlex
import subprocess
import sys

import pytest

import train
from tests.testers import ROOT, results_in

BLOCK = re.compile(r"```(python|yaml|bash)\n(.*?)```", re.DOTALL)


def blocks(page, language):
    return [text for kind, text in BLOCK.findall((ROOT / "docs" / page).read_text()) if kind == language]


def save_files(page, folder):
    """Save each block that begins with the name of a file."""
    for text in [*blocks(page, "python"), *blocks(page, "yaml")]:
        name = re.match(r"# ([\w.]+)\n", text)[1]
        (folder / name).write_text(text)


def commands(page):
    """Arguments of ``train.py`` in the page's commands."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line.partition("train.py")[2]) for line in lines]


def call(program, folder):
    done = subprocess.run([sys.executable, *program], cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The user's folder, where the commands are called."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_method_metric_callback_and_attack_of_ones_own(user, capsys):
    save_files("own_code.md", user)
    few = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false"]
    fit, test, predict = commands("own_code.md")
    call([str(ROOT / "train.py"), *fit, *few], user)
    versions = user / "logs" / "mine" / "lightning_logs"
    metrics = results_in(versions / "version_0" / "results.json")["metrics"]
    assert 0 <= 1 - metrics["test/accuracy/clean"] <= metrics["test/worst_class_error"] <= 1
    (attacked,) = (value for name, value in metrics.items() if name.startswith("test/accuracy/random/"))
    assert metrics["test/accuracy/union"] <= attacked <= metrics["test/accuracy/clean"]
    train.main([*test, "--trainer.limit_test_batches=1", "--trainer.enable_progress_bar=false"])
    model = results_in(versions / "version_1" / "results.json")["config"]["model"]["init_args"]
    assert (model["epsilon"], model["weight"]) == (0.05, 0.5)
    train.main([*predict, "--trainer.enable_progress_bar=false"])
    assert list(user.rglob("predictions.csv"))
    capsys.readouterr()
    exec((user / "load.py").read_text(), {})
    assert capsys.readouterr().out == "NoiseTraining 0.1 0.5\n"


def test_networks_of_torchvision_and_timm(user):
    pytest.importorskip("timm")
    save_files("own_network.md", user)
    few = ["--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--data.batch_size=8"]
    few += ["--data.eval_batch_size=8", "--trainer.enable_progress_bar=false"]
    for arguments in commands("own_network.md"):
        train.main([*arguments, *few])
    records = [results_in(path) for path in user.rglob("results.json")]
    assert sorted(record["method"] for record in records) == ["AdversarialTraining", "StandardTraining"]
