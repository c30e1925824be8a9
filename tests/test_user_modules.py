"""Modules of the user's: in the folder where the command line is called, and beside its config files."""

import subprocess
import sys

import pytest

import train
from cli.user_modules import checkout_names
from tests.docs_blocks import blocks, calls
from tests.programs import Program
from tests.testers import QUIET, ROOT, error_of, results_in

NETWORK = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, width: int = 4) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
"""
SMALL = ["--data=Digits", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]


def fit(classifier):
    """Arguments of ``fit`` with a network."""
    return ["fit", "--model=StandardTraining", f"--model.classifier={classifier}", *SMALL, *QUIET]


def test_a_network_in_the_folder_of_the_call_is_found(tmp_path):
    (tmp_path / "my_networks.py").write_text(NETWORK)
    program = Program(fit("my_networks.Net"), tmp_path)
    assert program.wait() == 0, program.stderr
    assert results_in(tmp_path / "results.json")["method"] == "StandardTraining"


def test_a_constructor_that_does_not_call_its_bases_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "no_super.py").write_text(
        "from lightning_modules import StandardTraining\n\n\n"
        "class NoSuper(StandardTraining):\n    def __init__(self, classifier) -> None:\n        self.size = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["fit", "--model=no_super.NoSuper", "--model.classifier=robust.networks.DMSmall", *SMALL, *QUIET]
    error = error_of([*arguments, f"--trainer.default_root_dir={tmp_path}"], capsys)
    assert error.startswith("model: got 'no_super.NoSuper'; its constructor does not call super().__init__(...)")


@pytest.mark.thorough
def test_the_folder_hides_no_installed_package(tmp_path):
    (tmp_path / "my_networks.py").write_text(NETWORK)
    (tmp_path / "random.py").write_text("raise RuntimeError('the wrong module')")
    (tmp_path / "yaml.py").write_text("raise RuntimeError('the wrong module')")
    (tmp_path / "train" / "dog").mkdir(parents=True)  # data, no package
    program = [sys.executable, str(ROOT / "train.py"), *fit("my_networks.Net")]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["callbacks.py", "robust/networks.py"])
def test_a_module_of_a_name_that_the_checkout_takes_is_an_error_in_one_line(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(NETWORK)
    program = Program(fit(f"{name.removesuffix('.py').replace('/', '.')}.Net"), tmp_path)
    clash = name.split("/")[0]
    remedy = "robust-lightning has a module of this name; rename yours"
    assert program.wait() == 2
    assert program.stderr == f"error: {clash.removesuffix('.py')}: got '{tmp_path / clash}'; {remedy}\n"


def test_the_checkouts_names_are_those_of_its_layers():
    layers = {"callbacks", "cli", "datamodules", "lightning_modules", "robust", "train"}
    assert layers <= set(checkout_names())
    assert {"tests", "docs", "configs"}.isdisjoint(checkout_names()), "users have folders of these names"


BROKEN = {
    "needs_more.py": ("import not_installed", "line 1: ModuleNotFoundError: No module named 'not_installed'"),
    "wrong_name.py": ("from torch import nn, no_such", "line 1: ImportError: cannot import name 'no_such'"),
    "no_python.py": ("class Net(:", "line 1: SyntaxError: invalid syntax"),
    "stops.py": ("\nraise RuntimeError('no GPU')", "line 2: RuntimeError: no GPU"),
    "raises.py": (
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n\n        1 / 0",
        "line 5: ZeroDivisionError: division by zero",
    ),
    "typed.py": (
        "from torch import nn\ndef net(width: int = 2) -> nn.Module:\n    return nn.Linear(784, 'ten')",
        "line 3: TypeError: ",
    ),
}


@pytest.fixture
def path_of_modules(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize("name", BROKEN)
def test_an_error_in_a_module_names_file_line_and_cause(name, tmp_path, path_of_modules, capsys):
    text, expected = BROKEN[name]
    (tmp_path / name).write_text(text)
    path = f"{name.removesuffix('.py')}.{'net' if name == 'typed.py' else 'Net'}"
    model = f"{{class_path: StandardTraining, init_args: {{classifier: {{class_path: {path}}}}}}}"
    (tmp_path / "mine.yaml").write_text(f"model: {model}\ndata: Digits\n")
    error = error_of(["fit", f"--config={tmp_path / 'mine.yaml'}", *QUIET], capsys)
    what = "building it" if name in ("raises.py", "typed.py") else "its module"
    assert error.startswith(f"model.classifier: got '{path}'; {what} fails at {tmp_path / name} {expected}")
    assert "; correct it" in error


def test_an_error_in_a_callback_or_method_of_ones_own_is_named_too(tmp_path, path_of_modules, capsys):
    (tmp_path / "own_parts.py").write_text(
        "from pytorch_lightning import Callback\n"
        "from lightning_modules import StandardTraining\n"
        "class Method(StandardTraining):\n"
        "    def __init__(self, **settings):\n"
        "        raise KeyError('temperature')\n"
        "class Watch(Callback):\n"
        "    def __init__(self, every: int = 1):\n"
        "        self.rate = [][every]\n"
    )
    (tmp_path / "mine.yaml").write_text("data: Digits\nmodel: {class_path: own_parts.Method}\n")
    error = error_of(["fit", f"--config={tmp_path / 'mine.yaml'}", *SMALL, *QUIET], capsys)
    assert error.startswith(f"model: got 'own_parts.Method'; building it fails at {tmp_path}/own_parts.py line 5: KeyE")
    (tmp_path / "mine.yaml").write_text(
        "data: Digits\ntrainer: {callbacks: [{class_path: own_parts.Watch}]}\n"
        "model: {class_path: StandardTraining, init_args: {classifier: {class_path: robust.networks.DMSmall}}}\n"
    )
    error = error_of(["fit", f"--config={tmp_path / 'mine.yaml'}", *QUIET], capsys)
    place = f"{tmp_path}/own_parts.py line 8: IndexError: list index out of range"
    assert error.startswith(f"trainer.callbacks.0: got 'own_parts.Watch'; building it fails at {place}; correct it")


def test_a_required_argument_without_a_type_is_named(tmp_path, path_of_modules, capsys):
    """Regression: the parser gave None for it, and the error was that of torch, in the constructor."""
    (tmp_path / "untyped.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n"
        "    def __init__(self, n_classes, width=8):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(784, n_classes))\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "data: Digits\nmodel: {class_path: StandardTraining, init_args: {classifier: {class_path: untyped.Net}}}\n"
    )
    error = error_of(["fit", f"--config={tmp_path / 'mine.yaml'}", *SMALL, *QUIET], capsys)
    expected = "model.classifier.n_classes: got None; not given; put it in the config file or on the command line"
    assert error == expected


def test_a_module_beside_the_config_file_is_found_and_one_that_clashes_is_refused(tmp_path, path_of_modules, capsys):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "beside.py").write_text(NETWORK)
    (folder / "net.yaml").write_text("model: {class_path: StandardTraining}\nmodel.classifier: beside.Net")
    (tmp_path / "mine.yaml").write_text("config: elsewhere/net.yaml")  # beside a file that the file names
    quiet = [*SMALL, *QUIET, f"--trainer.default_root_dir={tmp_path}"]
    train.main(["fit", f"--config={tmp_path / 'mine.yaml'}", *quiet])
    assert results_in(tmp_path / "results.json")["config"]["model"]["init_args"]["classifier"]["class_path"] == (
        "beside.Net"
    )
    clash = tmp_path / "clash"
    clash.mkdir()
    (clash / "callbacks.py").write_text(NETWORK)
    (clash / "mine.yaml").write_text("model: {class_path: StandardTraining}")
    error = error_of(["fit", f"--config={clash / 'mine.yaml'}", *quiet], capsys)
    assert error.startswith(f"callbacks: got '{clash}/callbacks.py'; robust-lightning has a module of this name")


def test_the_files_of_the_page_on_own_code_work_in_a_process_of_its_own(tmp_path):
    page = blocks(ROOT / "docs" / "own_code.md")
    for block in page:
        if block.language != "bash":
            block.save(tmp_path)
    first = next(block for block in page if block.language == "bash")
    (_, arguments), *_ = calls(first, tmp_path)
    few = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
    program = Program([*arguments, *few, "--trainer.enable_progress_bar=false"], tmp_path)
    assert program.wait() == 0, program.stderr
    (record,) = tmp_path.rglob("results.json")
    assert results_in(record)["method"] == "NoiseTraining"
