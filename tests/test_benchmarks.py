"""The benchmarks' quick variant, which .ci/run runs, finds what has become slower."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from benchmarks import confidence, memory, peers, run, shares, sweeps
from robust import zoo
from robust.errors import SettingError
from robust.networks import DMSmall


@pytest.fixture
def fake(monkeypatch):
    """A benchmark whose ratio the test sets."""
    ratio = {"own": 2.0}
    monkeypatch.setattr(
        run, "BENCHMARKS", {"fake": run.Benchmark("a step", lambda rounds, quick, device: {"small": dict(ratio)})}
    )
    monkeypatch.setattr(run, "installed_versions", dict)
    return ratio


def test_a_slower_ratio_fails_and_a_faster_one_does_not(fake, tmp_path, capsys):
    assert run.main(["--quick", "--record"], tmp_path) == 0
    (recorded,) = json.loads((tmp_path / "quick" / "fake.json").read_text()).values()
    assert recorded["columns"] == {"small": {"own": 2.0}}
    assert recorded.keys() == {"quantity", "unit", "columns", "rounds", "hardware", "commit", "versions"}
    for ratio, status in ((0.5, 0), (2.9, 0), (3.1, 1)):
        fake["own"] = ratio
        assert run.main(["--quick"], tmp_path) == status
    assert "fake, small, own: 3.1, recorded 2" in capsys.readouterr().out


def test_ratios_of_another_processor_are_not_compared(fake, tmp_path, capsys):
    """Regression: on a processor with faster plain passes, certification counted as slower."""
    assert run.main(["--quick", "--record"], tmp_path) == 0
    path = tmp_path / "quick" / "fake.json"
    (here,) = json.loads(path.read_text()).values()
    path.write_text(json.dumps({"another, AVX2, 1 thread": here}))
    fake["own"] = 9.0
    assert run.main(["--quick"], tmp_path) == 0
    assert "fake: not compared; recorded on another, AVX2, 1 thread, this is" in capsys.readouterr().out
    assert run.main(["--quick", "--record"], tmp_path) == 0
    assert list(json.loads(path.read_text())) == ["another, AVX2, 1 thread", here["hardware"]]
    fake["own"] = 14.0
    assert run.main(["--quick"], tmp_path) == 1


def test_without_a_record_there_is_nothing_to_compare_with(fake, tmp_path, capsys):
    assert run.main(["--quick"], tmp_path) == 2
    assert capsys.readouterr().err == "fake: there is no fake.json; record it by --quick --record\n"


def test_what_has_no_quick_variant_is_named(capsys):
    with pytest.raises(SystemExit) as end:
        run.main(["--quick", "shares"])
    assert end.value.code == 2
    assert "--quick: shares, peers have no quick variant; leave them out" in capsys.readouterr().err


def test_peers_run_in_an_environment_that_has_them(monkeypatch, tmp_path, capsys):
    run_by_uv = []
    monkeypatch.setenv("UV", "uv")
    status = 0

    def by_uv(command, **settings):
        run_by_uv.append(command)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(run, "subprocess", SimpleNamespace(run=by_uv, DEVNULL=subprocess.DEVNULL))
    assert run.main(["peers", "--rounds", "2"], tmp_path) == 0
    (command,) = run_by_uv
    assert command[:6] == ["uv", "run", "--with", "torchattacks", "--with", "foolbox"]
    assert command[-4:] == ["--rounds", "2", "--out", str(tmp_path / "peers.json")]
    status = 2
    with pytest.raises(SystemExit, match="error: peers: uv ended with status 2"):
        run.main(["peers"], tmp_path)
    monkeypatch.delenv("UV")
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="error: peers: there is no uv; install it"):
        run.main(["peers"], tmp_path)


def test_each_seed_gives_other_draws_to_all_peers():
    network = DMSmall((1, 28, 28))
    x = torch.rand(4, 1, 28, 28)
    y = network(x).argmax(1)  # attacks leave alone what is wrong
    for attack in peers.apgd(network).values():
        found = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            found.append(attack(x, y))
        assert not torch.equal(*found)


def test_the_time_of_a_step_is_that_of_its_kinds_of_operations():
    x = torch.rand(500, 500)
    kinds = shares.of_step(lambda: x.mm(x).exp(), 3)
    assert kinds["products of matrices"] > 0
    assert kinds["elementwise, sums"] > 0
    assert kinds["convolutions"] == kinds["im2col, col2im"] == 0


def test_peak_memory_is_what_tensors_hold_at_a_time():
    x = torch.zeros(1000, 1000)
    assert memory.peak(lambda: (x + 1, x + 2)) == pytest.approx(8e6, rel=0.01)
    assert memory.peak(lambda: (x + 1).sum() + (x + 2).sum()) == pytest.approx(4e6, rel=0.01)
    ratios = memory.ratios({"one": lambda: x + 1, "three": lambda: (x + 1, x + 2, x + 3)})
    assert ratios["three"] == pytest.approx(3, rel=0.01)


def test_scaled_logits_have_the_wanted_confidence_and_the_same_predictions():
    network = zoo.load("digits_adversarial_training")
    problem = confidence.PROBLEMS["digits"]
    logits, y = confidence.attacked_logits(problem, network)
    before, scale = confidence.confidence(logits), confidence.scale_for(problem, network, 0.5)
    assert confidence.confidence(scale * confidence.logits_of(problem, network)) == pytest.approx(0.5, abs=1e-6)
    plain, scaled = confidence.metrics_of(logits, y), confidence.metrics_of(scale * logits, y)
    assert scaled[0] < plain[0] == pytest.approx(100 * before)
    assert scaled[1] == plain[1], "A_rob"
    assert scaled[2] > plain[2], "A_sa: errors weigh less where they are less confident"
    assert plain[3] == pytest.approx(plain[1] - plain[2])


def test_two_settings_of_one_last_name_have_columns_of_their_own():
    """Regression: the second one replaced the first."""
    names = ["model.optimizer.init_args.lr", "model.generator_optimizer.init_args.lr", "model.epsilon"]
    assert [sweeps.short(name, names) for name in names] == ["optimizer.lr", "generator_optimizer.lr", "epsilon"]
    assert sweeps.short("lr", ["lr", "model.lr"]) == "lr"


def test_the_record_of_a_sweep_has_the_trials_and_the_commit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = {"model.lr": {"choice": [0.1, 0.2]}, "trainer.max_epochs": {"choice": [3]}}
    study = {"config": "a.yaml", "settings": settings, "objectives": {"val/accuracy/clean": "maximize"}}
    Path("study.yaml").write_text(yaml.safe_dump(study | {"folder": "logs", "seeds": [4, 5]}))
    fit = {"commit": "abc", "device": "1 x AMD EPYC, 1 threads", "versions": {"torch": "2"}}
    validate = {"metrics": {"val/accuracy/clean": 0.75}, "samples": {"val": 5000}}
    for trial in (0, 1):
        for seed in (4, 5):
            path = Path(f"logs/trial_{trial}/seed_{seed}/results.json")
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"fit": fit} | ({"validate": validate} if trial == 1 else {})))
    trials = [
        {
            "trial": number,
            "state": "complete",
            "settings": {"model.lr": rate, "trainer.max_epochs": 3},
            "objectives": {"val/accuracy/clean": sum(values) / 2},
            "by_seed": [[value] for value in values],
            "best": number == 1,
        }
        for number, rate, values in ((0, 0.1, [0.5, 0.52]), (1, 0.2, [0.9, 0.9]))
    ]
    diverged = {"state": "diverged", "settings": {"model.lr": 0.4, "trainer.max_epochs": 3}, "best": False}
    Path("logs/trials.json").write_text(json.dumps([diverged, *trials, {"state": "fail"}]))
    sweeps.main(["study.yaml", "--out", "record.json"])
    assert json.loads(Path("record.json").read_text()) == {
        "command": "sweep.py study.yaml --processes 1",
        "commit": "abc",
        "hardware": "AMD EPYC, 1 thread",
        "versions": {"torch": "2"},
        "rows": [
            {"lr": "0.2", "clean, %": "90.0 ± 0.0", "clean of 5000, %": "75.00 ± 0.00", "on the front": "yes"},
            {"lr": "0.1", "clean, %": "51.0 ± 1.4", "on the front": ""},
            {"lr": "0.4", "clean, %": "diverged", "on the front": ""},
        ],
    }
    Path("logs/trials.json").unlink()
    with pytest.raises(SettingError, match=r"study: got 'study\.yaml'; there is no logs/trials\.json; run sweep\.py"):
        sweeps.main(["study.yaml"])
