"""Code in loaded files never runs: the files have a harmless payload, which would write a file."""

import ast
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch
import yaml

import train
from callbacks.evaluation.saved_rows import SavedRows
from robust.attacks import autoattack
from robust.budgets import LearnedBudgets
from robust.errors import SettingError
from robust.networks import Autoencoder, BudgetGenerator, load_autoencoder
from robust.scores import OnManifold
from tests.test_wrong_settings import SMALL, error_of
from tests.testers import ROOT, last_checkpoint

PACKAGES = ("cli", "callbacks", "datamodules", "lightning_modules", "robust")


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """A checkpoint of fit."""
    folder = tmp_path_factory.mktemp("content")
    train.main(["fit", *SMALL, f"--trainer.default_root_dir={folder}"])
    return torch.load(last_checkpoint(folder), weights_only=True)


@pytest.fixture
def checkpoint(content, payload, tmp_path):
    """A complete checkpoint with the payload in an additional entry, alone in its folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    torch.save(content | {"payload": payload}, folder / "evil.ckpt")
    return folder / "evil.ckpt"


@pytest.fixture
def url(checkpoint):
    """The same checkpoint on a server."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=checkpoint.parent)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/{checkpoint.name}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_checkpoint(command, checkpoint, environment, tmp_path, capsys):
    line = error_of([command, *SMALL, f"--trainer.default_root_dir={tmp_path}", f"--ckpt_path={checkpoint}"], capsys)
    assert line.startswith(f"ckpt_path: got '{checkpoint}'; it holds more than tensors and plain values")


@pytest.mark.thorough
@pytest.mark.parametrize("command", ["fit", "test"])
def test_checkpoint_at_a_url(command, url, environment, tmp_path, capsys):
    line = error_of([command, *SMALL, f"--trainer.default_root_dir={tmp_path}", f"--ckpt_path={url}"], capsys)
    assert line.startswith(f"ckpt_path: got '{url}'; it holds more than tensors and plain values")


def test_checkpoints_that_the_words_stand_for(checkpoint, tmp_path, capsys):
    arguments = [*SMALL, f"--trainer.default_root_dir={tmp_path}", "--ckpt_path"]
    for word, name in (("last", "checkpoints/last.ckpt"), ("hpc", "hpc_ckpt_1.ckpt")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(checkpoint.read_bytes())
        assert f"got '{path}'; it holds more than tensors" in error_of(["test", *arguments, word], capsys)


def test_a_checkpoint_at_a_url_is_that_of_the_url(content, checkpoint, url, tmp_path):
    (checkpoint.parent / "last.ckpt").write_bytes(b"")
    for sign in (1, -1):  # Lightning would reuse the first, which has the same name in its cache
        weights = {name: sign * weight for name, weight in content["state_dict"].items()}
        torch.save(content | {"state_dict": weights}, checkpoint)
        folder = tmp_path / f"run{sign}"
        more = ["--trainer.max_epochs=2", "--model.optimizer.lr=0", "--resume_settings=config"]
        train.main(["fit", *SMALL, f"--trainer.default_root_dir={folder}", f"--ckpt_path={url}", *more])
        again = torch.load(last_checkpoint(folder), weights_only=True)["state_dict"]
        assert all(torch.equal(again[name], weight) for name, weight in weights.items())


def test_lightning_loads_weights_only_too(content, tmp_path, monkeypatch):
    torch.save(content, tmp_path / "good.ckpt")
    load, asked = torch.load, []

    def noted(*args, **kwargs):
        asked.append(kwargs["weights_only"])
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", noted)
    for command in ("fit", "validate", "test", "predict"):
        folder = f"--trainer.default_root_dir={tmp_path / command}"
        train.main([command, *SMALL, folder, "--trainer.max_epochs=2", f"--ckpt_path={tmp_path / 'good.ckpt'}"])
    assert len(asked) >= 8
    assert asked == [True] * len(asked)


def part(name, network, payload, path):
    """A checkpoint of a network's training with the payload among its weights."""
    weights = {f"{name}.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "budget_range": {"alpha_low": 0.5, "alpha_high": 2.0}, "more": payload}, path)


READERS = {
    "autoencoder": lambda path: load_autoencoder(Autoencoder(width=4), path, "model.autoencoder_checkpoint"),
    "autoencoder, sampler": lambda path: OnManifold(checkpoint=path),
    "autoencoder, of a known kind": lambda path: OnManifold(Autoencoder(width=4), path),
    "generator": lambda path: LearnedBudgets(BudgetGenerator(), path),
}


@pytest.mark.parametrize("reader", READERS)
def test_networks_of_earlier_trainings(reader, payload, environment, tmp_path):
    network = BudgetGenerator() if reader == "generator" else Autoencoder(width=4)
    part(reader.split(",")[0], network, payload, tmp_path / "evil.ckpt")
    with pytest.raises(SettingError, match=r"checkpoint: got '.*it holds more than tensors and plain values"):
        READERS[reader](str(tmp_path / "evil.ckpt"))


def test_saved_rows(payload, environment, tmp_path):
    rows = {"index": torch.arange(3)}
    SavedRows("state_folder", tmp_path / "rows", {"seed": 0}).write(rows, 0)
    assert torch.equal(SavedRows("state_folder", tmp_path / "rows", {"seed": 0}).read()["index"], rows["index"])
    torch.save({"depends_on": {"seed": 0}, "rows": rows, "x": payload}, tmp_path / "rows" / "process-0.pt")
    with pytest.raises(SettingError, match=r"state_folder: got '.*process-0.pt'; it holds more than tensors"):
        SavedRows("state_folder", tmp_path / "rows", {"seed": 0}).read()


WITHOUT_INDEX = [{"x": torch.zeros(2)}, {"place": torch.arange(3)}]  # the second is of an earlier version


@pytest.mark.parametrize("wrong", [{"index": torch.arange(3), "x": torch.zeros(2)}, *WITHOUT_INDEX, [1], None])
def test_saved_rows_that_are_none(wrong, tmp_path):
    torch.save({"depends_on": {}, "rows": wrong}, tmp_path / "process-0.pt")
    with pytest.raises(SettingError, match="it holds no results of an evaluation; give another folder"):
        SavedRows("state_folder", tmp_path, {}).read()


def test_saved_rows_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"state_folder: got '.*file/rows'; it cannot be written"):
        SavedRows("state_folder", tmp_path / "file" / "rows", {}).read()


def test_autoattacks_state(payload, environment, tmp_path):
    x, correct = torch.rand(2, 1, 4, 4), torch.ones(2, dtype=torch.bool)
    state = {"done": ["apgd-ce"], "robust": correct, "x_adv": x}
    path = tmp_path / "autoattack-0.pt"
    torch.save(state, path)
    assert autoattack._load(path, x, correct)["done"] == ["apgd-ce"]
    for wrong in (
        state | {"payload": payload},
        [state],
        state | {"robust": correct[:1]},
        state | {"x_adv": x.double()},
    ):
        torch.save(wrong, path)
        with pytest.raises(SettingError, match=r"state_folder: got '.*delete it"):
            autoattack._load(path, x, correct)


def test_yaml(payload, tmp_path, capsys):
    command = f"!!python/object/apply:os.mkdir ['{payload.marker}']"
    path = tmp_path / "code.yaml"
    path.write_text(f"model: {command}\n")
    yaml.unsafe_load(f"!!python/object/apply:os.mkdir ['{tmp_path / 'alive'}']")
    assert (tmp_path / "alive").is_dir()
    assert error_of(["fit", *SMALL, f"--config={path}"], capsys).startswith(f"config: got '{path}'; give a YAML file")
    assert error_of(["fit", *SMALL, f"--model={command}"], capsys).startswith("model: got ")


# -- every call ------------------------------------------------------------------------------------------------------

SAFE = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}
UNSAFE = {"pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"}


def test_every_call_that_loads_is_safe():
    seen = []
    for path in [ROOT / "train.py", *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))]:
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call):
                name, keywords = ast.unparse(call.func), [ast.unparse(keyword) for keyword in call.keywords]
                where = f"{path.relative_to(ROOT)}:{call.lineno}: {name}"
                if name in SAFE:
                    assert SAFE[name] in keywords, where
                    seen.append(name)
                trusted = path == ROOT / "datamodules" / "pickles.py" and name == "pickle.load"  # behind trust_pickle
                assert trusted or name not in UNSAFE, where
    assert set(seen) == set(SAFE)
    assert Path(ROOT / "datamodules" / "pickles.py").read_text().count("pickle.load(") == 1
