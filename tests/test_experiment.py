"""A matrix of experiments runs what is missing, goes on after a stop, and names wrong files; trainings are fakes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

import experiment
import train
from cli.experiment import Job, read_matrix
from tests.recorded_runs import write_run
from tests.testers import ROOT

MATRICES = sorted((ROOT / "experiments").glob("*.yaml"))

FAKE = """
import json, sys, time
from pathlib import Path

values = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[2:])
folder = Path(values["trainer.default_root_dir"])
if (folder.parent / "slow").exists():
    time.sleep(60)
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


@pytest.fixture
def matrix(tmp_path, monkeypatch):
    """A matrix of two runs and two seeds, one of which needs a prepared one."""
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


def test_runs_end_with_one_line_where_the_report_cannot_be_written(matrix, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "report", raising=False)
    monkeypatch.delitem(sys.modules, "reports.page", raising=False)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(SystemExit) as end:
        experiment.main([matrix()])
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: all runs are done, but vl_convert, which the report needs, is missing: install the ")
    assert len(list((tmp_path / "results").glob("*.json"))) == 4


def test_what_is_missing_runs_and_is_compared(matrix, tmp_path, capsys):
    experiment.main([matrix(), "--missing"])
    assert capsys.readouterr().out.splitlines() == ["a seed 0", "b seed 0", "a seed 1", "b seed 1"]
    with pytest.raises(SystemExit) as end:
        experiment.main([matrix()])
    assert end.value.code == 0
    ended = [line.partition("; ")[0] for line in capsys.readouterr().out.splitlines()[:5]]
    assert set(ended) == {"base seed 0: done", *(f"{n} seed {s}: done" for n in "ab" for s in (0, 1))}
    assert ended.index("base seed 0: done") < ended.index("b seed 0: done"), "b needs it"
    assert (tmp_path / "logs" / "report.html").is_file()
    fit, test = (commands(tmp_path, "b_1")[stage] for stage in ("fit", "test"))
    base = tmp_path / "logs" / "base" / "seed_0" / "checkpoints" / "last.ckpt"
    own = tmp_path / "logs" / "b" / "seed_1"
    settings = ["--trainer.max_epochs=2", f"--model.start={base}", "--model.generator=null"]
    assert fit[1] == f"--config={tmp_path / 'b.yaml'}"
    assert sorted(fit[2:5]) == sorted(settings)
    assert "--seed_everything=1" in fit
    assert fit[-1] == "--test_after_fit=false"
    assert test[1:5] == fit[1:5]
    assert test[5:8] == ["--trainer.callbacks=[]", f"--config={tmp_path / 'protocol.yaml'}", "--data.test_images=5"]
    assert f"--ckpt_path={own / 'checkpoints' / 'last.ckpt'}" in test
    experiment.main([matrix(), "--missing"])
    assert capsys.readouterr().out == "nothing missing\n"


def test_only_what_is_missing_runs_again_and_a_training_resumes(matrix, tmp_path, capsys):
    path = matrix(seeds=[0], prepare={}, runs={"a": "a.yaml", "b": "b.yaml"})
    (tmp_path / "logs" / "b" / "seed_0").mkdir(parents=True)
    (tmp_path / "logs" / "b" / "fail").touch()
    with pytest.raises(SystemExit) as end:
        experiment.main([path])
    assert end.value.code == 1
    failed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("b "))
    assert failed.startswith(f"b seed 0: failed: error: it broke ({tmp_path / 'logs' / 'b' / 'seed_0' / 'fit.log'})")
    (tmp_path / "logs" / "b" / "fail").unlink()
    checkpoint = tmp_path / "logs" / "b" / "seed_0" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    with pytest.raises(SystemExit) as end:
        experiment.main([path])
    assert end.value.code == 0
    assert next(line.partition(":")[0] for line in capsys.readouterr().out.splitlines()) == "b seed 0"
    assert commands(tmp_path, "b_0")["fit"][-1] == f"--ckpt_path={checkpoint}"


ONE = {"seeds": [0], "prepare": {}, "runs": {"a": "a.yaml"}}


def ended(path, capsys):
    """Status and lines of a matrix that runs."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        experiment.main([path])
    return end.value.code, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("file", [False, True], ids=["setting", "config file"])
def test_a_folder_with_a_training_of_other_settings_is_refused(file, matrix, tmp_path, capsys):
    """Else the records of the other training would be this one's."""
    assert ended(matrix(**ONE), capsys)[0] == 0
    (tmp_path / "results" / "a_0.json").unlink()
    other = ONE if file else ONE | {"runs": {"a": ["a.yaml", {"model.alpha": 1}]}}
    if file:
        (tmp_path / "part.yaml").write_text("model: {alpha: 1}")
        (tmp_path / "a.yaml").write_text("config: part.yaml")
    status, (line,) = ended(matrix(**other), capsys)
    folder = tmp_path / "logs" / "a" / "seed_0"
    assert line.startswith(f"a seed 0: failed: error: folder: got '{folder}'; it holds a training with other settings")
    assert status == 1
    assert not (tmp_path / "results" / "a_0.json").exists()
    (tmp_path / "a.yaml").write_text("{} # the same settings")
    assert ended(matrix(**ONE), capsys)[0] == 0


def test_another_evaluation_tests_a_finished_training_again(matrix, tmp_path, capsys):
    ended(matrix(**ONE), capsys)
    before = commands(tmp_path, "a_0")
    (tmp_path / "results" / "a_0.json").unlink()
    assert ended(matrix(**ONE, evaluation="base.yaml"), capsys)[0] == 0
    after = commands(tmp_path, "a_0")
    assert after["fit"] == before["fit"]
    assert f"--config={tmp_path / 'base.yaml'}" in after["test"]
    assert f"--config={tmp_path / 'base.yaml'}" not in before["test"]


def test_another_evaluation_forgets_what_the_former_has_measured(matrix, tmp_path, capsys):
    """Regression: ResumableTest refused the folder, whose verdicts were of other attacks."""
    ended(matrix(**ONE), capsys)
    (tmp_path / "results" / "a_0.json").unlink()
    state = tmp_path / "logs" / "a" / "seed_0" / "test" / "PGD"
    state.mkdir(parents=True)
    assert ended(matrix(**ONE), capsys)[0] == 0
    assert state.is_dir(), "the same evaluation goes on"
    (tmp_path / "results" / "a_0.json").unlink()
    assert ended(matrix(**ONE, evaluation="base.yaml"), capsys)[0] == 0
    assert not state.exists()


def test_results_of_other_settings_are_named(matrix, tmp_path, capsys):
    ended(matrix(**ONE), capsys)
    experiment.main([matrix(**ONE, evaluation="base.yaml"), "--missing"])
    outdated, nothing = capsys.readouterr().out.splitlines()
    result = tmp_path / "results" / "a_0.json"
    assert outdated == f"a seed 0: {result} has other settings; delete it to run this again"
    assert nothing == "nothing missing"
    experiment.main([matrix(**(ONE | {"runs": {"a": ["a.yaml", {"model.alpha": 1}]}})), "--missing"])
    outdated, _ = capsys.readouterr().out.splitlines()
    folder = tmp_path / "logs" / "a" / "seed_0"
    assert outdated.endswith(f"{result} has other settings; delete it and {folder} to run this again")


@pytest.mark.parametrize("linked", [False, True])
def test_what_a_training_without_a_checkpoint_left_is_deleted(linked, matrix, tmp_path, capsys):
    folder = tmp_path / "logs" / "a" / "seed_0"
    folder.parent.mkdir(parents=True)
    if linked:
        (tmp_path / "disk").mkdir()
        folder.symlink_to(tmp_path / "disk")
    (folder.parent / "fail").touch()
    assert ended(matrix(**ONE), capsys)[0] == 1
    (folder / "config.yaml").touch()
    (folder / "parts").mkdir()
    (folder.parent / "fail").unlink()
    assert ended(matrix(**ONE), capsys)[0] == 0
    assert not (folder / "config.yaml").exists()
    assert not (folder / "parts").exists()


@pytest.mark.parametrize("noted", [False, True])
def test_a_folder_with_files_of_others_is_left_alone(noted, matrix, tmp_path, capsys):
    """Regression: the runner deleted trainings without checkpoints/last.ckpt, such as those with a logger."""
    folder = tmp_path / "logs" / "a" / "seed_0"
    if noted:
        (tmp_path / "logs" / "a").mkdir(parents=True)
        (tmp_path / "logs" / "a" / "fail").touch()
        ended(matrix(**ONE), capsys)
        (tmp_path / "logs" / "a" / "fail").unlink()
    other = folder / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    other.parent.mkdir(parents=True)
    other.touch()
    status, (line,) = ended(matrix(**ONE), capsys)
    holds = f"holds {other}, of another training" if noted else "holds files of no run of a matrix; give another folder"
    assert line.startswith(f"a seed 0: failed: error: folder: got '{folder}'; it {holds}")
    assert status == 1
    assert other.is_file()


def test_a_first_checkpoint_beside_no_last_one_is_of_a_stop(matrix, tmp_path, capsys):
    folder = tmp_path / "logs" / "a" / "seed_0"
    folder.parent.mkdir(parents=True)
    (folder.parent / "fail").touch()
    assert ended(matrix(**ONE), capsys)[0] == 1
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "epoch=0.ckpt").touch()
    (folder.parent / "fail").unlink()
    assert ended(matrix(**ONE), capsys)[0] == 0
    assert not (folder / "checkpoints" / "epoch=0.ckpt").exists()


def test_a_finished_training_without_its_last_checkpoint_is_left_alone(matrix, tmp_path, capsys):
    assert ended(matrix(**ONE), capsys)[0] == 0
    folder = tmp_path / "logs" / "a" / "seed_0"
    (folder / "checkpoints" / "last.ckpt").unlink()
    (tmp_path / "results" / "a_0.json").unlink()
    status, (line,) = ended(matrix(**ONE), capsys)
    assert line.startswith(f"a seed 0: failed: error: folder: got '{folder}'; its training has ended, but ")
    assert status == 1
    assert (folder / "results.json").is_file()


def test_a_file_error_of_one_run_leaves_the_others(matrix, tmp_path, capsys):
    path = matrix(seeds=[0], prepare={}, runs={"a": "a.yaml", "b": "b.yaml"})
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a").touch()
    status, lines = ended(path, capsys)
    assert any(line.startswith("a seed 0: failed: error: ") and "Errno" in line for line in lines)
    assert any(line.startswith("b seed 0: done") for line in lines)
    assert status == 1


def test_names_of_runs_may_be_numbers(matrix, tmp_path, capsys):
    assert ended(matrix(seeds=[0], prepare={}, runs={0.1: "a.yaml"}), capsys)[0] == 0
    assert (tmp_path / "results" / "0.1_0.json").is_file()


def test_a_prepared_training_with_other_settings_is_refused(matrix, tmp_path, capsys):
    runs = {"b": ["b.yaml", {"model.start": "{base}"}]}
    assert ended(matrix(seeds=[0], runs=runs), capsys)[0] == 0
    (tmp_path / "results" / "b_0.json").unlink()
    status, lines = ended(matrix(seeds=[0], runs=runs, prepare={"base": ["base.yaml", {"model.width": 2}]}), capsys)
    assert status == 1
    assert lines[0].startswith("base seed 0: failed: error: folder: got")
    assert lines[-1] == "b seed 0: not run, it needs base"


def test_a_run_of_another_process_is_left_alone(matrix, tmp_path, capsys):
    folder = tmp_path / "logs" / "a" / "seed_0"
    folder.parent.mkdir(parents=True)
    with FileLock(folder.with_suffix(".lock")):
        status, (line,) = ended(matrix(**ONE), capsys)
    assert line.startswith(f"a seed 0: failed: folder: got '{folder}'; another process runs in it; wait for its end")
    assert status == 1
    assert not folder.exists()
    assert ended(matrix(**ONE), capsys)[0] == 0


def test_without_a_failed_preparation_the_others_run(matrix, tmp_path, capsys):
    (tmp_path / "logs" / "base").mkdir(parents=True)
    (tmp_path / "logs" / "base" / "fail").touch()
    with pytest.raises(SystemExit) as end:
        experiment.main([matrix(seeds=[0])])
    assert end.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert {line.partition(":")[0] for line in lines[:2]} == {"base seed 0", "a seed 0"}
    assert lines[2:] == ["b seed 0: not run, it needs base"]
    assert (tmp_path / "results" / "a_0.json").is_file()


def test_a_signal_ends_it_and_its_children(matrix, tmp_path):
    path = matrix(seeds=[0], prepare={}, runs={"a": "a.yaml"})
    (tmp_path / "logs" / "a").mkdir(parents=True)
    (tmp_path / "logs" / "a" / "slow").touch()
    fake = str(tmp_path / "fake" / "train.py")
    code = f"import experiment, pathlib; experiment.TRAIN = pathlib.Path({fake!r})"
    runner = subprocess.Popen(
        [sys.executable, "-c", f"{code}; experiment.main([{path!r}])"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    log = tmp_path / "logs" / "a" / "seed_0" / "fit.log"
    for _ in range(1200):  # a busy machine imports slowly
        if log.is_file():
            break
        time.sleep(0.1)
    runner.send_signal(signal.SIGTERM)
    output, _ = runner.communicate(timeout=120)
    assert (runner.returncode, output) == (130, "Stopped; the same command continues\n")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": {}}, "runs: got {}; give at least one"),
        ({"runs": ["a.yaml"]}, "runs: got ['a.yaml']; give config files by name"),
        ({"prepare": "base.yaml"}, "prepare: got 'base.yaml'; give config files by name"),
        ({"seeds": []}, "seeds: got []; give a list of different whole numbers"),
        ({"seeds": 3}, "seeds: got 3; give a list of different whole numbers"),
        ({"seeds": [0, 0]}, "seeds: got [0, 0]; give a list of different whole numbers"),
        ({"seeds": [0.5]}, "seeds: got [0.5]; give a list of different whole numbers"),
        ({"results": str(ROOT / "README.md")}, f"results: got '{ROOT / 'README.md'}'; this is a file; give a folder"),
        ({"runs": {"base": "a.yaml"}}, "prepare: got 'base'; runs has this name, too"),
        ({"runs": {"a": "none.yaml"}}, "runs.a: got "),
        ({"prepare": {}}, "runs.b.model.start: got '{base}'; prepare has no such run; it has none"),
        ({"evaluation": "none.yaml"}, "evaluation: got "),
        ({"sedes": [1]}, "matrix: got 'sedes'; no such setting; give evaluation, folder"),
    ],
)
def test_wrong_matrices_are_named(matrix, change, message, capsys):
    with pytest.raises(SystemExit) as end:
        experiment.main([matrix(**change)])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_absent_files_and_keys_are_named(tmp_path, capsys):
    (tmp_path / "matrix.yaml").write_text("runs: {a: a.yaml}")
    for arguments, message in (
        ([str(tmp_path / "none.yaml")], "matrix: got"),
        ([str(tmp_path / "matrix.yaml")], "matrix: got"),
        ([str(ROOT / "experiments" / "digits.yaml"), "--processes=0"], "processes: got 0; give at least 1"),
    ):
        with pytest.raises(SystemExit) as end:
            experiment.main(arguments)
        assert end.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize("path", MATRICES, ids=lambda path: path.stem)
def test_the_matrices_of_the_project_can_be_read(path):
    matrix = read_matrix(str(path))
    assert matrix.jobs()
    assert len({(job.name, job.seed) for job in matrix.jobs()}) == len(matrix.jobs())


def test_nothing_is_missing_in_the_matrices_that_the_page_calls_complete(monkeypatch):
    monkeypatch.chdir(ROOT)
    page = Path("docs/experiments.md").read_text(encoding="utf-8")
    complete, incomplete = (re.findall(r"`(\w+\.yaml)`", part) for part in page.partition("Not complete, most")[::2])
    for name in set(complete) - {"two_methods.yaml"}:
        assert [job.result.name for job in read_matrix(f"experiments/{name}").jobs() if not job.done] == [], name
    for name in incomplete:
        assert not all(job.done for job in read_matrix(f"experiments/{name}").jobs()), f"{name} is complete"
    assert {path.name for path in MATRICES} >= {*complete, *incomplete}


def test_no_two_matrices_train_different_runs_in_one_folder():
    runs = {}
    for path in MATRICES:
        for job in read_matrix(str(path)).jobs():
            for place in (job.folder, job.result):
                runs.setdefault(place, set()).add((job.training, job.evaluation))
    assert [str(folder) for folder, settings in runs.items() if len(settings) > 1] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", MATRICES, ids=lambda path: path.stem)
def test_each_run_of_the_projects_matrices_has_settings_that_fit(path, capsys):
    matrix = read_matrix(str(path))
    for job in [job for job in matrix.jobs() if job.seed == matrix.seeds[0]]:
        for arguments in (job.fit(), job.test()):
            present = [each for each in arguments if not each.startswith("--ckpt_path")]  # no training has written it
            with pytest.raises(SystemExit) as end:
                train.main([*present, "--print_config"])
            assert end.value.code in (None, 0), (job.name, capsys.readouterr().err)


def test_the_time_left_is_that_of_other_seeds_of_the_same_run(tmp_path):
    def job(name, seed, seconds=None):
        result = tmp_path / f"{name}_{seed}.json"
        if seconds is not None:
            result.write_text(json.dumps({"fit": {"wall_time": seconds / 2}, "test": {"wall_time": seconds / 2}}))
        return Job(name, seed, tmp_path, result, (), ("test",))

    runner = experiment.Runner(2, [job("short", 0, 60.0), job("long", 0, 540.0)])
    later = [job("short", 1), job("long", 1), job("long", 2)]
    assert runner._next(later, []) is later[1], "the longest of the first seed"
    assert experiment.Runner(2, [])._next(later, []) is later[0]
    assert runner._next([], []) is None
    assert runner._left([]) == "0 left"
    assert runner._left([job("long", 1), job("short", 1)]) == "2 left, about 5 min"
    assert runner._left([job("long", 1), job("long", 2)]) == "2 left, about 9 min"
    assert runner._left([job("new", 0), job("new", 1)]) == "2 left, about 5 min"
    assert experiment.Runner(2, [])._left([job("new", 0)]) == "1 left"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to CPUs")
def test_runs_have_the_threads_of_the_cpus_that_they_may_use():
    """Regression: a run bound to one CPU had the threads of all, which waited for each other."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert experiment.Runner(1, []).threads == 1
    finally:
        os.sched_setaffinity(0, before)
    assert experiment.Runner(1, []).threads == len(before)
