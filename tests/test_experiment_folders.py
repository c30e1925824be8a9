"""The runner of experiments takes no other run's files for its own, and deletes none; trainings are fakes."""

import sys

import pytest

import experiment
from cli.job_folder import are_noted
from cli.user_modules import code_in
from tests.fake_trainings import ONE, commands, ended, fake_matrix


@pytest.fixture
def matrix(tmp_path, monkeypatch):
    """A function that writes a matrix of two runs and two seeds, whose trainings are fakes."""
    return fake_matrix(tmp_path, monkeypatch)


@pytest.mark.thorough
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


def test_an_edited_file_of_the_user_is_noticed(matrix, tmp_path, capsys):
    """Regression: a matrix took the result of a training with an earlier version of the file for the present one's."""
    own = tmp_path / "my_edited_net.py"
    own.write_text("WIDTH = 1")
    mine = ONE | {"runs": {"a": ["a.yaml", {"model.classifier": {"class_path": "my_edited_net.Net"}}]}}
    assert ended(matrix(**mine), capsys)[0] == 0
    experiment.main([matrix(**mine), "--missing"])
    assert capsys.readouterr().out.splitlines() == ["nothing missing"]
    own.write_text("WIDTH = 2")
    experiment.main([matrix(**mine), "--missing"])
    result, folder = tmp_path / "results" / "a_0.json", tmp_path / "logs" / "a" / "seed_0"
    outdated, nothing = capsys.readouterr().out.splitlines()
    remedy = f"delete it and {folder} to run this again"
    assert outdated == f"a seed 0: {result} is of an earlier version of a file of yours; {remedy}"
    assert nothing == "nothing missing"
    result.unlink()
    status, (line,) = ended(matrix(**mine), capsys)
    assert status == 1
    assert f"got '{folder}'; it holds a training with an edited file of yours" in line
    own.write_text("WIDTH = 1")
    assert ended(matrix(**mine), capsys)[0] == 0


def test_files_behind_settings_are_found_without_an_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for name in ("model.py", "mine.py", "own_net.py", "modèle.py", "own_pack/__init__.py", "own_pack/inner.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError")
    settings = {"model.epsilon": 0.1, "root": "logs/mine.yaml", "nets": ["own_net.Net.small", "modèle.Net", "nn.ReLU"]}
    assert code_in({"model": 1} | settings).keys() == {"own_net", "modèle"}
    before = code_in(["own_pack.Net"])
    (tmp_path / "own_pack" / "inner.py").write_text("edited = True")
    assert before.keys() == {"own_pack"}
    assert code_in(["own_pack.Net"]) != before
    assert code_in(["report.x", "tests.fake_trainings.FAKE", "robust.networks.DMSmall", "torch.nn.ReLU", "1.5"]) == {}


def test_notes_of_early_versions_are_adopted():
    settings = {"files": {}, "others": [], "own_code": {"net": "abc"}}
    assert are_noted(settings, {"files": {}, "others": []})
    assert not are_noted(settings, settings | {"own_code": {"net": "def"}})
    assert not are_noted(settings, {"files": {"a": 1}, "others": []})


def test_settings_may_change_before_the_first_checkpoint(matrix, tmp_path, capsys):
    """Nothing was trained: a run whose settings failed at its first step starts with the corrected ones."""
    folder = tmp_path / "logs" / "a" / "seed_0"
    folder.parent.mkdir(parents=True)
    (folder.parent / "fail").touch()
    assert ended(matrix(**ONE), capsys)[0] == 1
    (folder.parent / "fail").unlink()
    assert ended(matrix(**(ONE | {"runs": {"a": ["a.yaml", {"model.alpha": 1}]}})), capsys)[0] == 0
    assert "--model.alpha=1" in commands(tmp_path, "a_0")["fit"]


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
    holds = f"holds {other}, of another training" if noted else "holds files that are not of a matrix"
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
