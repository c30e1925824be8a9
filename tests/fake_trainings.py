"""A matrix of experiments whose trainings are fakes, for the tests of the runner."""

import json

import pytest
import yaml

import experiment
from tests.recorded_runs import write_run

FAKE = """
import json, os, sys, time
from pathlib import Path

if sys.argv[-1] == "--print_config":
    sys.exit("error: model.typo: got 3; no such setting" if "--model.typo=3" in sys.argv else 0)
values = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[2:])
folder = Path(values["trainer.default_root_dir"])
if (folder.parent / "slow").exists():
    (folder.parent / "slow").write_text(str(os.getpid()))
    time.sleep(60)
if (folder.parent / "killed").exists():
    print("Total FLOPs: 0", flush=True)
    os.kill(os.getpid(), 9)
if (folder.parent / "fail").exists():
    sys.exit("error: it broke")
(folder / "checkpoints").mkdir(exist_ok=True)
(folder / "checkpoints" / "last.ckpt").touch()
path = folder / "results.json"
records = json.loads(path.read_text()) if path.exists() else {}
records[sys.argv[1]] = json.loads(Path(__file__).with_name("record.json").read_text()) | {
    "seed": int(values["seed_everything"]), "command": " ".join(sys.argv[1:])
}
path.write_text(json.dumps(records))
"""


def fake_matrix(tmp_path, monkeypatch):
    """A function that writes a matrix of two runs and two seeds, one of which needs a prepared one."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "train.py").write_text(FAKE)
    recorded = json.loads((write_run(tmp_path / "record") / "results.json").read_text())
    (tmp_path / "fake" / "record.json").write_text(json.dumps(recorded["fit"]))
    monkeypatch.setattr(experiment, "TRAIN", tmp_path / "fake" / "train.py")
    for name in ("a", "b", "base", "protocol"):
        (tmp_path / f"{name}.yaml").write_text("{}")
    content = {
        "folder": str(tmp_path / "logs"),
        "results": str(tmp_path / "results"),
        "seeds": [0, 1],
        "evaluation": ["protocol.yaml", {"data.test_images": 5}],
        "prepare": {"base": "base.yaml"},
        "settings": {"trainer.max_epochs": 2},
        "runs": {"a": "a.yaml", "b": ["b.yaml", {"model.start": "{base}", "model.generator": None}]},
    }

    def write(**changes):
        (tmp_path / "matrix.yaml").write_text(yaml.safe_dump(content | changes))
        return str(tmp_path / "matrix.yaml")

    return write


def commands(tmp_path, name):
    """The commands of a finished run, by their first word."""
    records = json.loads((tmp_path / "results" / f"{name}.json").read_text())
    return {stage: each["command"].split() for stage, each in records.items()}


ONE = {"seeds": [0], "prepare": {}, "runs": {"a": "a.yaml"}}


def ended(path, capsys):
    """Status and lines of a matrix that runs."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        experiment.main([path])
    return end.value.code, capsys.readouterr().out.splitlines()
