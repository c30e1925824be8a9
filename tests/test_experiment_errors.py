"""Wrong matrices and settings are named before a run starts."""

import pytest

import experiment
from tests.fake_trainings import ONE, ended, fake_matrix
from tests.testers import ROOT


@pytest.fixture
def matrix(tmp_path, monkeypatch):
    """A function that writes a matrix of two runs and two seeds, whose trainings are fakes."""
    return fake_matrix(tmp_path, monkeypatch)


def test_a_broken_result_is_named(matrix, tmp_path, capsys):
    """Regression: it was a traceback."""
    path = matrix(**ONE)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a_0.json").touch()
    with pytest.raises(SystemExit) as end:
        experiment.main([path])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("a_0.json'; it is no record of a run; delete it to run this again")


def test_a_run_that_a_signal_ends_is_named(matrix, tmp_path, capsys):
    """Regression: the reason was the last line of its log, whatever it said."""
    (tmp_path / "logs" / "a").mkdir(parents=True)
    (tmp_path / "logs" / "a" / "killed").touch()
    status, (line,) = ended(matrix(**ONE), capsys)
    assert line.startswith("a seed 0: failed: ended by SIGKILL (a lack of memory ends a process by SIGKILL) (")
    assert status == 1


def test_a_run_without_evaluation_is_refused(matrix, capsys):
    """Regression: it was trained and never tested."""
    with pytest.raises(SystemExit):
        experiment.main([matrix(evaluation={})])
    assert capsys.readouterr().err == "error: evaluation: got {}; give a config file, such as protocol.yaml\n"


@pytest.mark.parametrize("part", ["evaluation", "runs"])
def test_a_wrong_setting_is_named_before_the_first_training(part, matrix, tmp_path, capsys):
    """Regression: the setting of a test was read after the training, and that of a run when its turn came."""
    change = (
        {"evaluation": {"model.typo": 3}} if part == "evaluation" else {"runs": ONE["runs"] | {"z": {"model.typo": 3}}}
    )
    path = matrix(**ONE | change)
    with pytest.raises(SystemExit) as end:
        experiment.main([path])
    assert end.value.code == 2
    name = "a" if part == "evaluation" else "z"
    assert capsys.readouterr().err == f"error: {name}: model.typo: got 3; no such setting\n"
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("setting", ["seed_everything", "trainer.default_root_dir", "checkpoint.dirpath", "ckpt_path"])
def test_settings_that_each_run_gets_are_refused(setting, matrix, capsys):
    """Regression: they were accepted and ignored."""
    for change in ({"runs": {"a": ["a.yaml", {setting: 5}]}}, {"settings": {setting: 5}}):
        with pytest.raises(SystemExit):
            experiment.main([matrix(**ONE | change)])
        assert f"{setting}: got 5; each run gets a value of its own; " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["folder", "results"])
@pytest.mark.parametrize("value", [None, 5])
def test_a_folder_that_is_no_path_is_named(name, value, matrix, capsys):
    """Regression: a TypeError."""
    with pytest.raises(SystemExit):
        experiment.main([matrix(**ONE | {name: value})])
    assert capsys.readouterr().err.endswith(f"error: {name}: got {value}; give the path of a folder\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": {}}, "runs: got {}; give at least one"),
        ({"runs": ["a.yaml"]}, "runs: got ['a.yaml']; give config files by name"),
        ({"prepare": "base.yaml"}, "prepare: got 'base.yaml'; give config files by name"),
        ({"seeds": []}, "seeds: got []; give a list of different whole numbers"),
        ({"seeds": 3}, "seeds: got 3; give a list of different whole numbers"),
        ({"seeds": [0, 0]}, "seeds: got [0, 0]; give a list of different whole numbers"),
        ({"seeds": [-1]}, "seeds: got [-1]; give a list of different whole numbers from 0 to 4294967295"),
        ({"seeds": [True]}, "seeds: got [True]; give a list of different whole numbers"),
        ({"runs": {"": "a.yaml"}}, "runs: got ''; give the run a name that can be a folder's, without slashes"),
        ({"runs": {"../a": "a.yaml"}}, "runs: got '../a'; give the run a name that can be a folder's"),
        ({"prepare": {"..": "a.yaml"}}, "prepare: got '..'; give the run a name that can be a folder's"),
        ({"seeds": [0.5]}, "seeds: got [0.5]; give a list of different whole numbers"),
        ({"results": str(ROOT / "README.md")}, f"results: got '{ROOT / 'README.md'}'; this is a file; give a folder"),
        ({"runs": {"base": "a.yaml"}}, "prepare: got 'base'; a run in runs has this name, too"),
        ({"runs": {"a": "none.yaml"}}, "runs.a: got "),
        ({"runs": {"a": ["a.yaml", 3]}}, "runs.a: got 3; give config files, or settings by their full names"),
        ({"evaluation": 3}, "evaluation: got 3; give config files, or settings by their full names"),
        ({"settings": "a.yaml"}, "settings: got 'a.yaml'; give settings by their full names"),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"runs: {a: &weight_0.1 a.yaml}", "give a YAML file of settings (while scanning an anchor"),
        (b"runs: {}\nruns: {}", "'runs' is given twice, in line 1 and 2; keep one of them"),
        (b"\xff\xfe", "it is not in UTF-8"),
    ],
)
def test_a_matrix_that_cannot_be_read_is_named(text, message, tmp_path, capsys):
    path = tmp_path / "matrix.yaml"
    path.write_bytes(text)
    with pytest.raises(SystemExit) as end:
        experiment.main([str(path)])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: matrix: got '{path}'; {message}")
