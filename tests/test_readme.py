"""README: its method trains, with the data set of docs/data.md; it is short, and what it names exists."""

import ast
import importlib
import re

import pytest
import yaml

from callbacks import CertifiedEvaluation, EpsilonScheduler
from robust.networks import DMSmall
from tests.callbacks.trained import trainer_with
from tests.docs_blocks import PAGES, blocks
from tests.testers import ROOT, run

README = ROOT / "README.md"


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
    (method,) = (block for block in blocks(README) if block.language == "python")
    (data,) = (block for block in blocks(ROOT / "docs" / "data.md") if block.language == "python")
    paths = dict(reversed(saved(block.text)) for block in (method, data))
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


def test_it_is_short():
    assert len(README.read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_links_to_exists(page):
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_files_named_in_the_readme_exist():
    named = re.findall(r"(?:configs|docs|tests|robust|benchmarks)/[\w./-]*\w", README.read_text())
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
