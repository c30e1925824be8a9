"""Every block of code of README, CONTRIBUTING and docs runs as its user runs it, or says why it does not."""

import csv
import re
import sys
from collections import Counter

import pytest

from tests.docs_blocks import PAGES, blocks, check, prepare, run_page
from tests.testers import results_in

# A new marker needs a reason, and a change here.
MARKED = {"parsed": 22, "not run": 24, "slow": 3}
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
FEW = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
SHORTER = {"own_code": FEW, "own_network": [*FEW, "--data.batch_size=8", "--data.eval_batch_size=8"]}
SHORTER["zoo"] = ["--trainer.limit_test_batches=1", "--data.eval_batch_size=50"]
RUN = [page for page in PAGES if any(block.marker in (None, "slow") for block in blocks(page))]


def name(page):
    return page.stem


def cost(page):
    slow = any(block.marker == "slow" for block in blocks(page))
    return pytest.param(page, marks=[pytest.mark.slow] if slow else [], id=page.stem)


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A user's folder, the working directory; modules in it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # train.py finds the folder itself
    prepare(tmp_path)
    known = set(sys.modules)
    yield tmp_path
    for module in set(sys.modules) - known:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]


def own_data(folder, _output):
    metrics = results_in(folder / "logs" / "fruit" / "results.json")["metrics"]
    assert metrics["test/accuracy/clean"] >= metrics["test/certified_accuracy/own_budgets"] > 0.5
    with (folder / "logs" / "fruit" / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"picture {number}.png" for number in range(5)]
    assert [row["class"] for row in rows] == ["Äpfel", "limes", "plums", "Äpfel", "limes"]
    for column in ("probability/Äpfel", "certified_epsilon/own_budgets"):
        assert column in rows[0]


def own_code(folder, output):
    versions = folder / "logs" / "mine" / "lightning_logs"
    metrics = results_in(versions / "version_0" / "results.json")["metrics"]
    clean = metrics["test/accuracy/clean"]
    assert 0 <= 1 - clean <= metrics["test/worst_class_error"] <= 1
    (random,) = (value for name, value in metrics.items() if name.startswith("test/accuracy/random/"))
    assert metrics["test/accuracy/union"] <= random <= clean
    assert any(name.startswith("test/accuracy/sign/") for name in metrics)
    budgets = results_in(folder / "logs" / "budgets" / "lightning_logs" / "version_0" / "results.json")
    assert budgets["metrics"]["val/budget/own_budgets/log_volume_error"] < 1e-5
    model = results_in(versions / "version_1" / "results.json")["config"]["model"]["init_args"]
    assert (model["epsilon"], model["weight"]) == (0.05, 0.5)
    assert list(folder.rglob("predictions.csv"))
    assert output.endswith("NoiseTraining 0.1 0.5\n")


def own_network(folder, _output):
    methods = {results_in(path)["method"] for path in folder.rglob("results.json")}
    assert methods == {"AdversarialTraining", "ContextualBudgets", "StandardTraining"}


def export(folder, _output):
    files = {path.name for path in (folder / "logs" / "export" / "export").iterdir()}
    assert files == {"last.onnx", "last.safetensors", "last.md", "last-vnnlib"}
    assert (folder / "image.vnnlib").exists()


def quickstart(folder, _output):
    runs = folder / "logs" / "quickstart" / "lightning_logs"
    metrics = results_in(runs / "version_0" / "results.json")["metrics"]
    for budgets in ("own_budgets", "linf_0.2"):
        names = ("accuracy/clean", f"accuracy/pgd_20/{budgets}", f"certified_accuracy/{budgets}")
        clean, attacked, certified = (metrics[f"test/{name}"] for name in names)
        assert clean >= attacked >= certified
    assert "test/accuracy/union" in results_in(runs / "version_1" / "results.json")["metrics"]


OUTCOMES = {check.__name__: check for check in (own_data, own_code, own_network, export, quickstart)}


def test_the_marked_blocks_are_counted():
    assert Counter(block.marker for page in PAGES for block in blocks(page) if block.marker) == MARKED


@pytest.mark.thorough_but("quickstart", "README0")
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_blocks_are_accepted(page, user):
    for block in blocks(page):
        if block.language != "bash":
            block.save(user)
    for block in blocks(page):
        check(block, user)


@pytest.mark.thorough_but("own_code", "bounds")
@pytest.mark.parametrize("page", [cost(page) for page in RUN])
def test_the_blocks_run(page, user, capfd):
    if page.stem == "own_network":
        pytest.importorskip("timm")
    run_page(page, user, [*QUIET, *SHORTER.get(page.stem, [])])
    if page.stem in OUTCOMES:
        OUTCOMES[page.stem](user, capfd.readouterr().out)


def test_sessions_are_on_the_page_that_is_run_with_torch_alone():
    assert {block.page.stem for page in PAGES for block in blocks(page) if block.session} == {"library"}


def test_every_block_is_found():
    for page in PAGES:
        fences = re.findall(r"^ *```(?:bash|python|yaml)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        markers = re.findall(r"^ *<!-- (?:slow|parsed|not run):", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == len(blocks(page)), page
        assert len(markers) == sum(block.marker is not None for block in blocks(page)), page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```bash\nuv run tensorboard --logdir logs\n```\n", "tensorboard: mark it"),
        ("```bash\ncurl example.org\n```\n", "curl: command not found"),
        ("```\nuv run train.py fit\n```\n", "a block without a language"),
        ("```bash\nuv run train.py fit --modle 3\n```\n", "2"),  # the status of train.py
    ],
)
def test_a_block_that_cannot_run_needs_a_marker(text, message, user):
    page = user / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises((AssertionError, SystemExit), match=message):
        run_page(page, user, [])
