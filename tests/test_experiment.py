"""A matrix of experiments runs what is missing, goes on after a stop, and names wrong files; trainings are fakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock

import experiment
from cli.experiment import Job, Matrix
from tests.fake_trainings import ONE, commands, ended, fake_matrix
from tests.testers import ROOT


@pytest.fixture
def matrix(tmp_path, monkeypatch):
    """A function that writes a matrix of two runs and two seeds, whose trainings are fakes."""
    return fake_matrix(tmp_path, monkeypatch)


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_a_prepared_run_trains_only_if_a_missing_run_needs_it(matrix, tmp_path, capsys):
    """Regression: it trained for runs that did not need it."""
    runs = {"a": "a.yaml", "b": ["b.yaml", {"model.start": "{base}"}]}
    assert ended(matrix(runs=runs, seeds=[0]), capsys)[0] == 0
    (tmp_path / "results" / "a_0.json").unlink()
    shutil.rmtree(tmp_path / "logs")
    assert ended(matrix(runs=runs, seeds=[0]), capsys)[0] == 0
    assert not (tmp_path / "logs" / "base").exists()
    (tmp_path / "results" / "b_0.json").unlink()
    assert ended(matrix(runs=runs, seeds=[0]), capsys)[0] == 0
    assert (tmp_path / "logs" / "base" / "seed_0" / "checkpoints").exists()


def test_several_matrices_run_one_after_the_other(matrix, tmp_path, capsys):
    paths = []
    for name in ("first", "second"):
        written = Path(matrix(**ONE | {"folder": str(tmp_path / name), "results": str(tmp_path / name / "results")}))
        paths.append(str(written.rename(tmp_path / f"{name}.yaml")))
    (tmp_path / "first" / "a").mkdir(parents=True)
    (tmp_path / "first" / "a" / "fail").touch()
    with pytest.raises(SystemExit) as end:
        experiment.main(paths)
    assert end.value.code == 1, "the first one failed"
    capsys.readouterr()
    experiment.main([*paths, "--missing"])
    assert capsys.readouterr().out.splitlines() == [f"{paths[0]}: a seed 0", f"{paths[1]}: nothing missing"]
    with pytest.raises(SystemExit):
        experiment.main([paths[1], str(tmp_path / "none.yaml")])
    assert "none.yaml" in capsys.readouterr().err


def test_checkpoints_are_where_the_test_reads_them(matrix, tmp_path, capsys):
    """Regression: a config's checkpoint.dirpath put them elsewhere, all seeds in one folder."""
    path = matrix(**ONE | {"runs": {"a": ["a.yaml", {"checkpoint": {"dirpath": "elsewhere"}}]}})
    assert ended(path, capsys)[0] == 0
    own = f"--checkpoint.dirpath={tmp_path / 'logs' / 'a' / 'seed_0' / 'checkpoints'}"
    fit = commands(tmp_path, "a_0")["fit"]
    assert fit.index(own) > next(fit.index(each) for each in fit if "elsewhere" in each)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_damaged_note_fails_its_run_alone(text, matrix, tmp_path, capsys):
    """Regression: it ended the matrix in a traceback."""
    path = matrix(seeds=[0])
    note = tmp_path / "logs" / "a" / "seed_0" / "run.json"
    note.parent.mkdir(parents=True)
    note.write_text(text)
    with pytest.raises(SystemExit) as end:
        experiment.main([path])
    assert end.value.code == 1
    assert f"a seed 0: failed: error: folder: got '{note}'; it does not say with which" in capsys.readouterr().out
    assert [each.name for each in (tmp_path / "results").iterdir()] == ["b_0.json"]


def test_a_prepared_checkpoint_is_found_at_any_depth(tmp_path):
    """Regression: within a nested setting the text reached the training, and the run was not prepared."""
    (tmp_path / "a.yaml").touch()
    for nested in ({"weights": "{base}"}, ["{base}"], {"a": [{"b": "{base}"}]}):
        runs = {"a": ["a.yaml", {"model": nested}]}
        matrix = Matrix(runs, "a.yaml", "logs", "results", prepare={"base": "a.yaml"}, base=tmp_path)
        (job,) = matrix.jobs()
        assert job.needs == ("base",)
        assert "logs/base/seed_0/checkpoints/last.ckpt" in job.training[-1]
        assert "{base}" not in job.training[-1]


@pytest.mark.thorough
@pytest.mark.parametrize("finishes", [True, False])
def test_a_run_of_another_process_is_waited_for(finishes, matrix, tmp_path, capsys):
    """Its record counts; if it stops without one, the run goes on here."""
    folder = tmp_path / "logs" / "a" / "seed_0"
    folder.parent.mkdir(parents=True)
    result = tmp_path / "results" / "a_0.json"
    record = {kind: {"wall_time": 1.0, "metrics": {}} for kind in ("fit", "test")}
    held = threading.Event()

    def other():
        with FileLock(folder.with_suffix(".lock")):
            held.set()
            time.sleep(1)
            if finishes:
                result.parent.mkdir()
                result.write_text(json.dumps(record))

    path = matrix(**ONE)
    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    status, lines = ended(path, capsys)
    thread.join()
    assert lines[0] == f"a seed 0: another process runs in {folder}; waiting for it"
    assert lines[1].startswith("a seed 0: done")
    assert folder.exists() != finishes
    assert status == 0


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


def exists(process):
    """Whether there is a process of that number."""
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


def started(path, tmp_path):
    """A runner in a process of its own, when its training, which takes a minute, has begun."""
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
    return runner


@pytest.mark.thorough
def test_a_signal_ends_it_and_its_children(matrix, tmp_path):
    runner = started(matrix(**ONE), tmp_path)
    runner.send_signal(signal.SIGTERM)
    output, _ = runner.communicate(timeout=120)
    assert (runner.returncode, output) == (130, "Stopped; the same command continues\n")
    assert not (tmp_path / "results").exists()


@pytest.mark.thorough
def test_the_training_of_a_killed_runner_ends_before_the_next_begins(matrix, tmp_path, capsys):
    """Regression: two trainings wrote into one folder."""
    runner = started(path := matrix(**ONE), tmp_path)
    slow = tmp_path / "logs" / "a" / "slow"
    for _ in range(1200):
        if slow.read_text():
            break
        time.sleep(0.1)
    runner.kill()
    runner.wait()
    training = int(slow.read_text())
    slow.unlink()
    status, lines = ended(path, capsys)
    assert status == 0
    assert any(line.startswith("a seed 0: done") for line in lines)
    for _ in range(200):  # its parent notes its end a moment later
        if not exists(training):
            break
        time.sleep(0.1)
    assert not exists(training)


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
    assert runner._remaining([]) == "0 remaining"
    assert runner._remaining([job("long", 1), job("short", 1)]) == "2 remaining, about 5 min"
    assert runner._remaining([job("long", 1), job("long", 2)]) == "2 remaining, about 9 min"
    assert runner._remaining([job("new", 0), job("new", 1)]) == "2 remaining, about 5 min"
    assert experiment.Runner(2, [])._remaining([job("new", 0)]) == "1 remaining"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to CPUs")
def test_runs_have_the_threads_of_the_cpus_that_they_may_use(monkeypatch):
    """Regression: a run bound to one CPU had the threads of all, which waited for each other."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert experiment.Runner(1, []).threads == 1
    finally:
        os.sched_setaffinity(0, before)
    assert experiment.Runner(1, []).threads == len(before)


@pytest.mark.parametrize(("given", "threads"), [("1", 1), ("2", 2), ("100", 4), ("4,1", 4), ("0", 1)])
def test_no_run_has_more_threads_than_the_environment_allows(given, threads, monkeypatch):
    """Regression: the CPUs' number replaced OMP_NUM_THREADS, and runs of two commands waited for each other."""
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert experiment.Runner(2, []).threads == threads
