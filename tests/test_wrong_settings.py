"""Each wrong setting ends in one line with its name and the remedy, before anything is trained."""

import copy
import errno
import os
import pickle
import shlex
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch

import train
from cli import checkpoints
from lightning_modules import TrainingModule
from robust.errors import SettingError
from tests import testers, wrong_files, wrong_settings
from tests.testers import ROOT, last_checkpoint

SMALL = [
    f"--config={ROOT / 'configs' / 'standard_training' / 'digits.yaml'}",
    "--test_after_fit=false",
    "--data.batch_size=16",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.max_epochs=1",
    "--trainer.callbacks=[]",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
]
SECONDS = 10
IMAGES = np.zeros((20, 1, 28, 28), np.uint8)
LABELS = np.arange(20) % 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Wrong files of every kind."""
    folder = tmp_path_factory.mktemp("wrong")
    write_configs(folder)
    write_checkpoints(folder)
    (folder / "none").mkdir()
    for name, images, labels in (
        ("empty", IMAGES[:0], LABELS[:0]),
        ("fewer", IMAGES, LABELS[:5]),
        ("fractions", IMAGES, LABELS + 0.5),
        ("range", IMAGES, LABELS + 1),
    ):
        np.savez(folder / f"{name}.npz", image=images, label=labels)
    np.savez(folder / "names.npz", picture=IMAGES, label=LABELS)
    (folder / "code.pickle").write_bytes(pickle.dumps({"image": IMAGES, "label": LABELS, "how": os.getcwd}))
    return folder


def write_configs(folder):
    (folder / "file").write_text("")
    (folder / "binary").write_bytes(bytes(range(256)))
    for name, text in {
        "twice": "data:\n  init_args:\n    batch_size: 3\n    batch_size: 4\n",
        "holds-itself": "model: &a [*a]\n",
        "deep": "[" * 200_000 + "]" * 200_000,
        "code": "model: !!python/object/apply:os.getcwd []\n",
        "number": "5: 6\n",
        "list": "- 1\n",
        "large": "# \n" * 2_000_000,
    }.items():
        (folder / f"{name}.yaml").write_text(text)
    (folder / "utf16.yaml").write_text("model: {}\n", encoding="utf-16")


def write_checkpoints(folder):
    train.main(["fit", *SMALL, f"--trainer.default_root_dir={folder / 'run'}"])
    path = last_checkpoint(folder / "run")
    content = path.read_bytes()
    half = len(content) // 2
    for name, wrong in {
        "zeros": bytes(len(content)),
        "zeros-inside": content[:half] + bytes(4096) + content[half + 4096 :],
        "truncated": content[:half],
        "empty": b"",
        "pickle": pickle.dumps({"state_dict": {}}),
    }.items():
        (folder / f"{name}.ckpt").write_bytes(wrong)
    with zipfile.ZipFile(folder / "zip.ckpt", "w") as archive:
        archive.writestr("letter.txt", "hello")
    saved = torch.load(path, weights_only=True)
    weights_only = {"callbacks", "optimizer_states", "lr_schedulers"}
    fewer, odd = copy.deepcopy(saved), copy.deepcopy(saved)
    fewer["state_dict"].popitem()
    del odd["optimizer_states"][0]["param_groups"][0]["params"]
    for name, wrong in {
        "weights": {key: value for key, value in saved.items() if key not in weights_only},
        "state_dict": saved["state_dict"],
        "fewer-weights": fewer,
        "odd-optimizers": odd,
        "other-method": saved | {"method": "TRADES"},
        "no-seed-of-data": saved | {"Digits": {}},
        **{f"without-{key}": {k: v for k, v in saved.items() if k != key} for key in ("epoch", "loops", "method")},
    }.items():
        torch.save(wrong, folder / f"{name}.ckpt")


@pytest.fixture
def untrained(monkeypatch):
    """A step of training fails the test."""

    def step(*_, **__):
        pytest.fail("a step was trained")

    monkeypatch.setattr(TrainingModule, "descend", step)
    monkeypatch.setattr(TrainingModule, "step", step)


def error_of(arguments, capsys):
    """The line with which a command line ends; in time."""
    begun = time.process_time()
    line = testers.error_of(arguments, capsys)
    assert time.process_time() - begun < SECONDS
    return line


WRONG = wrong_settings.WRONG | wrong_files.WRONG
CASES = [(kind, *case) for kind, cases in WRONG.items() for case in cases]


def test_there_are_enough_of_them():
    assert len({arguments for _, arguments, *_ in CASES}) == len(CASES) >= 120


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "arguments", "setting", "remedy"), CASES, ids=[f"{c[0]}: {c[1]}" for c in CASES])
def test_wrong_setting(kind, arguments, setting, remedy, folder, untrained, tmp_path, capsys):
    words = shlex.split(arguments.format(folder=folder))
    command = words.pop(0) if words[0] in ("fit", "validate", "test", "predict") else "fit"
    line = error_of([command, *SMALL, f"--trainer.default_root_dir={tmp_path / 'run'}", *words], capsys)
    assert line.startswith((f"{setting}: ", f"{setting}."))
    assert ": got " in line or ": not given" in line
    assert remedy in line.partition(": ")[2]
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT])
def test_a_folder_that_is_read_only_or_full(code, untrained, tmp_path, capsys, monkeypatch):
    def fail(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    line = error_of(["fit", *SMALL, f"--trainer.default_root_dir={tmp_path / 'run'}"], capsys)
    assert line.startswith(f"trainer.default_root_dir: got '{tmp_path / 'run'}'; it cannot be written (")
    assert os.strerror(code) in line
    assert not list(tmp_path.iterdir()), "the trial file is removed"


def test_a_bug_in_a_users_network_keeps_its_traceback(untrained, tmp_path):
    bug = "--model.classifier=tests.wrong_networks.HasABug"
    with pytest.raises(KeyError, match="logit"):
        train.main(["fit", *SMALL, f"--trainer.default_root_dir={tmp_path}", bug])


def bomb(path, line):
    """Write ten levels, each with ten aliases of the level before."""
    lines = ["a0: &a0 {k: 1}", *(line.format(n=n, before=", ".join([f"*a{n - 1}"] * 10)) for n in range(1, 12))]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.thorough
@pytest.mark.parametrize("line", ["a{n}: &a{n} [{before}]", "a{n}: &a{n}\n  <<: [{before}]"], ids=["values", "merged"])
def test_an_alias_bomb_is_refused_in_time(line, tmp_path):
    bomb(tmp_path / "bomb.yaml", line)
    script = (
        f"import time, cli.config_files as c; t = time.time()\n"
        f"try: c.load(open({str(tmp_path / 'bomb.yaml')!r}).read())\n"
        f"except c.RefusedYAMLError as error: print(time.time() - t < 5, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("True got ")
    assert "more than 100,000 values with its aliases" in done.stdout


def test_anchors_are_read(tmp_path, capsys):
    path = tmp_path / "anchors.yaml"
    path.write_text("model: {init_args: {epsilon: &e 0.25}}\nepsilon_schedule: {middle: *e}\n")
    with pytest.raises(SystemExit) as stop:
        train.main(["fit", *SMALL, f"--config={path}", "--print_config"])
    assert stop.value.code == 0
    assert "middle: 0.25" in capsys.readouterr().out


def test_a_server_that_trickles_is_not_waited_for(monkeypatch):
    class Trickling(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            with suppress(OSError):  # until the client gives up
                while True:
                    self.wfile.write(b"0")
                    time.sleep(0.05)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(checkpoints, "SECONDS", 1)
    with HTTPServer(("127.0.0.1", 0), Trickling) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        start = time.monotonic()
        with pytest.raises(SettingError, match=r"ckpt_path: .* cannot be fetched \(\d+ bytes in 1 seconds\)"):
            checkpoints.download(f"http://127.0.0.1:{server.server_port}/x.ckpt")
        assert time.monotonic() - start < 5
