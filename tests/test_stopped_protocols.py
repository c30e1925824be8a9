"""Protocols that are killed and go on, and those on two processes, end with the record of one run."""

import json
import re
import time

import pytest
import torch

from tests.callbacks.trained import stored
from tests.programs import Program
from tests.testers import ROOT, last_checkpoint, run, two_processes

FOLDER = ROOT / "configs" / "evaluation"
QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:ckpt_path. got None", "ignore:gradient masking")]


def test_a_killed_test_goes_on_to_the_same_record(tmp_path):
    """But for the time that it took. That kept verdicts are not computed again: ``callbacks/test_resumable.py``."""
    torch.save(stored().classifier.state_dict(), tmp_path / "net.pth")
    network = ["--model.classifier=tests.callbacks.trained.Small", f"--model.weights={tmp_path / 'net.pth'}"]
    settings = ["--model=StandardTraining", *network, "--data=Digits", f"--config={FOLDER / 'protocol_quick.yaml'}"]
    settings += ["--data.test_images=6", "--data.eval_batch_size=3", *QUIET, "--trainer.default_root_dir=."]
    settings += ["--trainer.callbacks+=ResumableTest", "--trainer.callbacks.folder=kept"]

    def started(name):
        (tmp_path / name).mkdir(exist_ok=True)
        return Program(["test", *settings], tmp_path / name)

    def kept():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "kept").rglob("*.pt")}

    killed = started("killed")
    while len(kept()) < 12:
        assert killed.process.is_alive(), killed.stderr
        time.sleep(0.01)
    killed.process.kill()
    killed.process.join()
    assert not (tmp_path / "killed" / "results.json").exists(), "it was killed in the middle"
    first_batch = kept()
    for program in (started("killed"), started("whole")):
        assert program.wait() == 0, program.stderr
    assert len(kept()) > 2 * len(first_batch)
    records = [json.loads((tmp_path / name / "results.json").read_text())["test"] for name in ("killed", "whole")]
    assert records[0]["outcomes"]
    assert records[0] | {"wall_time": 0} == records[1] | {"wall_time": 0}


def test_two_processes_give_the_counts_of_one_and_continue_from_its_state(tmp_path):
    """Learned budgets, which have every part of a protocol; sums of floats are rounded otherwise, counts are exact."""
    trained = trained_few("quickstart", tmp_path)
    settings = [*trained, "--data.test_images=16", "--data.eval_batch_size=8", "--trainer.callbacks+=ResumableTest"]
    _, one = run("test", [*settings, f"--trainer.callbacks.folder={tmp_path / 'a'}"], tmp_path / "one")
    _, two = two_processes("test", [*settings, f"--trainer.callbacks.folder={tmp_path / 'b'}"], tmp_path / "two")
    _, again = two_processes("test", [*settings, f"--trainer.callbacks.folder={tmp_path / 'a'}"], tmp_path / "again")
    assert one["skipped"] == {}
    for record in (two, again):
        assert_same_counts(record, one)
    assert (tmp_path / "b" / "AdversarialEvaluation").is_dir()


@pytest.mark.filterwarnings("ignore:CertifiedEvaluation is left out", "ignore:RobustnessScore is left out")
def test_two_processes_give_the_counts_of_one_for_networks_with_noise(tmp_path):
    settings = [*trained_few("learn2perturb/digits", tmp_path, "--model.noise_delay=1", "--model.adversarial_delay=2")]
    settings += ["--data.test_images=4", "--data.eval_batch_size=4"]
    _, one = run("test", settings, tmp_path / "one")
    _, two = two_processes("test", settings, tmp_path / "two")
    assert list(one["skipped"]) == ["CertifiedEvaluation", "RobustnessScore"]
    assert_same_counts(two, one)


def trained_few(config, folder, *settings):
    """Arguments of a test with the smallest protocol behind a few steps of a training."""
    given = [f"--config={ROOT / 'configs' / config}.yaml", "--trainer.callbacks=[]", *settings]
    short = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=20", "--test_after_fit=false"]
    run("fit", [*given, *short], folder / "fit")
    return [*given, f"--config={FOLDER / 'protocol_quick.yaml'}", f"--ckpt_path={last_checkpoint(folder / 'fit')}"]


def assert_same_counts(record, other):
    """The metrics, and each image's verdicts."""
    assert record["outcomes"] == other["outcomes"]
    floats = re.compile(r"robustness_score|weighted_accuracy|budget|/std$")
    counts = {name for name in other["metrics"] if not floats.search(name)}
    assert {name: record["metrics"][name] for name in counts} == {name: other["metrics"][name] for name in counts}
    assert record["metrics"] == pytest.approx(other["metrics"], rel=1e-6)
