"""The matrices in experiments/: they can be read, and the page says which are complete."""

import json
import re
from pathlib import Path

import pytest
import yaml

import train
from cli.composition import expanded, merged
from cli.experiment import read_matrix
from tests.testers import ROOT

MATRICES = sorted((ROOT / "experiments").rglob("*.yaml"))


def name_of(path):
    return str(path.relative_to(ROOT / "experiments").with_suffix(""))


@pytest.mark.parametrize("path", MATRICES, ids=name_of)
def test_the_matrices_of_the_project_can_be_read(path):
    matrix = read_matrix(str(path))
    assert matrix.jobs()
    assert len({(job.name, job.seed) for job in matrix.jobs()}) == len(matrix.jobs())


@pytest.mark.parametrize("path", MATRICES, ids=name_of)
def test_nothing_is_missing_but_of_the_matrices_for_a_gpu(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    missing = [job.result.name for job in read_matrix(str(path)).jobs() if not job.done]
    assert (len(missing) > 0) == (path.parent.name == "gpu"), missing


def test_the_page_lists_every_matrix():
    page = Path(ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    _, without_gpu, for_gpu = re.split(r"\| file in `experiments/(?:gpu/)?` \|", page.partition("\n## In pieces")[0])
    for part, folder in ((without_gpu, "experiments"), (for_gpu, "gpu")):
        listed = [name for row in part.split("\n") if row.startswith("|") for name in re.findall(r"`(\w+\.yaml)`", row)]
        assert sorted(listed) == [path.name for path in MATRICES if path.parent.name == folder]


def numbers(settings, path=()):
    """Numbers in nested settings, by their path without ``init_args``."""
    if isinstance(settings, dict | list):
        pairs = settings.items() if isinstance(settings, dict) else enumerate(settings)
        for key, value in pairs:
            yield from numbers(value, path if key == "init_args" else (*path, key))
    elif isinstance(settings, int | float):
        yield path, settings


def trained_with(job):
    """Numbers in a job's settings of the training."""
    training = job.settings()["fit"]
    pairs = (other.removeprefix("--").partition("=") for other in training["others"])
    own = expanded({name: yaml.safe_load(value) for name, _, value in pairs})
    whole = merged(training["files"], own)
    return dict(numbers({name: whole.get(name) for name in ("model", "epsilon_schedule", "seed_everything")}))


@pytest.mark.thorough
@pytest.mark.parametrize("path", MATRICES, ids=name_of)
def test_records_were_trained_with_the_settings_that_their_matrix_has_now(path, monkeypatch):
    """A name alone does not say so: after a change of a config, results of the former one would pass as its own."""
    monkeypatch.chdir(ROOT)
    for job in read_matrix(str(path)).jobs():
        if job.done:
            records = json.loads(job.result.read_text(encoding="utf-8"))
            recorded = dict(numbers(records.get("fit", records["test"])["config"]))
            given = trained_with(job)
            other = {
                name: (value, recorded[name]) for name, value in given.items() if recorded.get(name, value) != value
            }
            assert other == {}, job.result


def test_no_two_matrices_train_different_runs_in_one_folder():
    runs = {}
    for path in MATRICES:
        for job in read_matrix(str(path)).jobs():
            for place in (job.folder, job.result):
                runs.setdefault(place, set()).add((job.training, job.evaluation))
    assert [str(folder) for folder, settings in runs.items() if len(settings) > 1] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", MATRICES, ids=name_of)
def test_each_run_of_the_projects_matrices_has_settings_that_fit(path, capsys):
    matrix = read_matrix(str(path))
    for job in [job for job in matrix.jobs() if job.seed == matrix.seeds[0]]:
        for arguments in (job.fit(), job.test()):
            present = [each for each in arguments if not each.startswith("--ckpt_path")]  # no training has written it
            with pytest.raises(SystemExit) as end:
                train.main([*present, "--print_config"])
            assert end.value.code in (None, 0), (job.name, capsys.readouterr().err)
