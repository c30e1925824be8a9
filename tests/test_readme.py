"""The README's blocks of code run, each as a file of its own."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest
import yaml

from callbacks import CertifiedEvaluation, EpsilonScheduler
from robust.networks import DMSmall
from tests.callbacks.trained import trainer_with
from tests.testers import run

README = Path(__file__).resolve().parent.parent / "README.md"
NETWORK = '''
import torch
from torch import nn


class MyNet(nn.Module):
    """A network that is no plain sequence of layers."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, width, 5, 3), nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Linear(64 * width, 10)

    def forward(self, x):
        h = self.first(x).relu()
        return self.last(torch.flatten((h + self.second(h)).relu(), 1))
'''


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A function that saves a block as a module, and returns the import path and the class in it."""
    monkeypatch.syspath_prepend(tmp_path)

    def save(block):
        (name,) = (part.name for part in ast.parse(block).body if isinstance(part, ast.ClassDef))
        (tmp_path / f"my_{name.lower()}.py").write_text(block)
        module = importlib.import_module(f"my_{name.lower()}")
        return f"{module.__name__}.{name}", getattr(module, name)

    return save


def test_a_method_and_a_data_set_of_ones_own(saved, tmp_path):
    paths = dict(reversed(saved(block)) for block in blocks("python"))
    classes = {kind.__name__: kind for kind in paths}
    module = classes["IntervalTraining"](DMSmall(num_classes=2), epsilon=0.05)
    scheduler = EpsilonScheduler("linear", length=10)
    trainer = trainer_with(scheduler, CertifiedEvaluation(), max_epochs=12)
    data = classes["Stripes"](batch_size=60)
    trainer.fit(module, datamodule=data)
    metrics = trainer.test(module, datamodule=data, verbose=False)[0]
    assert 0.8 < metrics["test/certified_accuracy/linf_0.05"] <= metrics["test/accuracy/clean"]

    network = {"class_path": "robust.networks.DMSmall", "init_args": {"num_classes": 2}}
    model = {"class_path": paths[classes["IntervalTraining"]], "init_args": {"classifier": network, "epsilon": 0.05}}
    config = {"model": model, "data": {"class_path": paths[classes["Stripes"]]}, "trainer": {"max_epochs": 1}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    _, record = run("fit", [f"--config={tmp_path / 'mine.yaml'}", "--test_after_fit=true"], tmp_path)
    assert record["method"] == "IntervalTraining"
    assert 0 <= record["metrics"]["test/accuracy/clean"] <= 1


def test_a_network_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    (block,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(block)
    quickstart = README.parent / "configs" / "quickstart.yaml"
    settings = [f"--config={quickstart}", f"--config={tmp_path / 'mine.yaml'}", "--trainer.max_epochs=1"]
    evaluation = json.dumps([{"class_path": "CertifiedEvaluation", "init_args": {"pgd_steps": 2}}])
    few = ["--trainer.limit_train_batches=2", "--data.batch_size=8", "--data.eval_batch_size=8"]
    few += ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1", f"--trainer.callbacks={evaluation}"]
    _, record = run("fit", [*settings, *few], tmp_path)
    assert record["metrics"]["test/certified_accuracy/own_budgets"] <= record["metrics"]["test/accuracy/clean"]


def test_files_named_in_the_readme_exist():
    root = README.parent
    named = re.findall(r"(?:configs|docs|tests|robust|benchmarks)/[\w./-]*\w", README.read_text())
    assert named
    assert [name for name in named if not (root / name).exists()] == []


def test_yaml_blocks_are_yaml():
    for block in blocks("yaml"):
        assert "model" in yaml.safe_load(block)
