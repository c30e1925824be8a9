"""Any number of processes gives the same weights of each method and the same metrics of each evaluation."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback
from torch import nn

from lightning_modules import AdversarialTraining
from lightning_modules.base.synchronised import SynchronisedStatistics, check_equal_passes
from robust.attacks import PGD
from robust.errors import SettingError
from tests.every_method import METHODS, settings_of
from tests.testers import (
    QUIET,
    ROOT,
    assert_any_number_of_processes_agrees,
    assert_registered,
    last_checkpoint,
    run,
    several_processes,
)

# with every kind of draw: of attacks, of noise for examples and for weights, of a generator, of a choice and a sample
QUICK = (
    "contextual_budgets",
    "adversarial_training_early_stop",
    "learn2perturb",
    "adversarial_bnn",
    "mng_ac_batch_norm",
    "wasserstein_autoencoder",
)


@pytest.mark.thorough_but("contextual_budgets")
@pytest.mark.parametrize("method", QUICK)
def test_a_method_in_two_processes(method, tmp_path):
    assert_any_number_of_processes_agrees(settings_of(method, tmp_path), tmp_path, counts=(2,))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_two_and_three_processes(method, tmp_path):
    assert_any_number_of_processes_agrees(settings_of(method, tmp_path), tmp_path, counts=(2, 3))


def attack(kind, **settings):
    return {"attack": {"class_path": f"robust.attacks.{kind}", "init_args": settings}}


def evaluations(stochastic, few):
    """Every evaluation that attacks, with random starts; without those that refuse a network with noise.

    A ``few`` of them for a noisy network, whose passes draw for every image.
    """
    linf = {"class_path": "robust.threat_models.LinfBall", "init_args": {"epsilon": 0.02}}
    cases = {
        "pgd": attack("PGD", steps=3, restarts=2, early_stop=True) | {"norm": "linf", "epsilon": 0.02},
        "l2": attack("PGD", steps=2) | {"norm": "l2", "epsilon": 0.3},
        "apgd": attack("APGD", steps=3) | {"norm": "l1", "epsilon": 2.0},
        "square": attack("Square", queries=4) | {"threat_model": linf},
    }
    adversarial = {"attacks": cases, "num_samples": 3, "gradient_samples": 2}
    masking = {"steps": 2, "restarts": 2, "queries": 5, "max_batches": 2, "epsilons": {"linf": 0.1}, "tolerance": 0.9}
    curve = {"attacks": {"pgd": attack("PGD", steps=2)["attack"]}, "epsilons": [0.05, 0.1], "num_samples": 3}
    weighted = {"steps": 2, "step_size": 0.03, "epsilon": 0.1, "restarts": 2}
    chosen = {"AdversarialEvaluation": adversarial, "GradientMaskingChecks": masking, "AccuracyCurve": curve}
    chosen["WeightedMinimaxEvaluation"] = weighted
    if stochastic and few:
        del adversarial["attacks"]["l2"], adversarial["attacks"]["apgd"], chosen["AccuracyCurve"]
        masking |= {"steps": 1, "restarts": 1, "queries": 1, "max_batches": 1}
    if not stochastic:
        pgd = {"class_path": "robust.attacks.GrowingPGD", "init_args": {"steps": 3}}
        sampler = {"class_path": "robust.scores.UniformBall", "init_args": {"num_samples": 2}}
        chosen["RobustnessScore"] = {"attacks": {"pgd": pgd, "fgsm": "robust.attacks.FGSMGrid"}}
        score = {"class_path": "robust.scores.R1", "init_args": {"sampler": sampler}}
        chosen["SampledRobustness"] = {"score": score, "epsilons": 4}
        chosen["CertifiedEvaluation"] = {}
    return [{"class_path": name, "init_args": settings} for name, settings in chosen.items()]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "counts"),
    [
        ("standard_training", (2,)),
        ("learn2perturb", (2,)),
        *(
            pytest.param(method, (2, 3), marks=pytest.mark.slow)
            for method in ("standard_training", "learn2perturb", "adversarial_bnn", "parametric_noise_injection")
        ),
    ],
)
def test_every_evaluation_measures_the_same(method, counts, tmp_path):
    """Also for another batch size, except for random weights, which all examples of a batch share."""
    longer = ["--trainer.limit_train_batches=20"]
    longer += ["--model.adversarial_delay=5"] if method == "learn2perturb" else []
    run("fit", [*settings_of(method, tmp_path), *longer], tmp_path)
    stochastic = method != "standard_training"
    callbacks = json.dumps(evaluations(stochastic, few=counts == (2,)))
    settings = [
        *settings_of(method, tmp_path),
        f"--ckpt_path={last_checkpoint(tmp_path)}",
        f"--trainer.callbacks={callbacks}",
        "--data.eval_batch_size=6",  # of two and of three processes
        "--data.test_images=12",  # far apart: noise is drawn for them alone
    ]
    settings.remove("--test_after_fit=false")
    settings.remove("--trainer.callbacks=null")
    _, one = run("test", settings, tmp_path / "1")
    expected = {name: value for name, value in one["metrics"].items() if name.startswith("test/")}
    assert_registered(expected)
    assert expected["test/attacked_samples"] == 12
    assert 0 < expected["test/accuracy/union"] <= expected["test/accuracy/clean"]
    for count in counts:
        _, several = several_processes(count, "test", settings, tmp_path / str(count))
        measured = {name: value for name, value in several["metrics"].items() if name.startswith("test/")}
        assert measured == pytest.approx(expected, rel=1e-6, abs=1e-9), f"{count} processes"
    _, larger = run("test", [*settings, "--data.eval_batch_size=12"], tmp_path / "l")
    names = [name for name in expected if "/masking/" not in name]  # those are of the first batches
    assert {name: larger["metrics"][name] for name in names} == pytest.approx(
        {name: expected[name] for name in names}, rel=1e-6, abs=1e-9
    )


@pytest.mark.slow
@pytest.mark.parametrize(("method", "version"), [("standard_training", "standard"), ("learn2perturb", "rand")])
def test_autoattack_measures_the_same(method, version, tmp_path):
    pytest.importorskip("pyautoattack", reason="needs the extra eval")
    run("fit", [*settings_of(method, tmp_path), "--trainer.limit_train_batches=20"], tmp_path)
    case = attack("AutoAttack", version=version) | {"norm": "linf", "epsilon": 0.03}
    callbacks = [{"class_path": "AdversarialEvaluation", "init_args": {"attacks": {"autoattack": case}}}]
    settings = [
        *settings_of(method, tmp_path),
        "--trainer.precision=32-true",
        f"--ckpt_path={last_checkpoint(tmp_path)}",
        f"--trainer.callbacks={json.dumps(callbacks)}",
        "--data.eval_batch_size=12",
        "--trainer.limit_test_batches=2",
    ]
    settings.remove("--test_after_fit=false")
    settings.remove("--trainer.callbacks=null")
    _, one = run("test", settings, tmp_path / "1")
    expected = {name: value for name, value in one["metrics"].items() if name.startswith("test/accuracy/")}
    assert 0 < expected["test/accuracy/autoattack/linf_0.03"] < expected["test/accuracy/clean"]
    for count in (2, 3):
        _, several = several_processes(count, "test", settings, tmp_path / str(count))
        assert {name: several["metrics"][name] for name in expected} == pytest.approx(expected), f"{count} processes"


def test_synchronised_statistics_equal_torchs_in_one_process_and_can_be_reverted():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    x = torch.rand(4, 1, 6, 6)
    before = network.train()(x)
    synchronised = SynchronisedStatistics()
    assert torch.equal(synchronised.apply(network)(x), before)
    assert type(network[1]) is nn.BatchNorm2d
    assert "forward" not in vars(synchronised.revert(network)[1])


@pytest.mark.parametrize(("mode", "refused"), [("frozen", True), ("keep", True), ("eval", False)])
def test_attacks_that_stop_early_do_not_let_other_processes_wait(mode, refused):
    module = AdversarialTraining(nn.Linear(1, 1), attack=PGD(early_stop=True, mode=mode))
    if refused:
        with pytest.raises(SettingError, match="all processes must make the same passes"):
            check_equal_passes(module)
    else:
        check_equal_passes(module)


PROCESSES = Path("/proc")
PROGRAM = [sys.executable, str(ROOT / "train.py"), "fit", f"--config={ROOT / 'configs/standard_training/digits.yaml'}"]
LONG = ["--data.batch_size=30", "--data.eval_batch_size=60", "--trainer.callbacks=null", "--trainer.max_epochs=10000"]
LONG += ["--checkpoint.every_n_train_steps=5", "--test_after_fit=false", *QUIET, "--trainer.strategy=ddp"]
LEFT_BEHIND = ("PL_", "MASTER_", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "ROBUST_", "TORCHELASTIC")


def environment():
    return {name: value for name, value in os.environ.items() if not name.startswith(LEFT_BEHIND)}


class SlowValidation(Callback):
    """Waits in each validation batch."""

    def on_validation_batch_start(self, *_):
        time.sleep(0.5)


def running(folder):
    """Process ids of the trainings in a folder, by their local rank."""
    processes = {}
    for process in [path.name for path in PROCESSES.iterdir()]:
        if process.isdigit():
            try:
                command = (PROCESSES / process / "cmdline").read_text().split("\0")
                names = (PROCESSES / process / "environ").read_text().split("\0")
            except OSError:
                continue
            if "torch.distributed.run" not in command and f"--trainer.default_root_dir={folder}" in command:
                rank = next((name.partition("=")[2] for name in names if name.startswith("LOCAL_RANK=")), "0")
                processes[int(rank)] = int(process)
    return processes


def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} seconds"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(not PROCESSES.is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("validating", [False, True], ids=["in training", "in validation"])
def test_when_a_process_is_killed_the_others_end_and_name_it(launcher, killed, validating, tmp_path):
    where = ["--trainer.devices=2", f"--trainer.default_root_dir={tmp_path}"]
    if validating:  # nearly all of the time
        where += ["--trainer.limit_train_batches=5", "--trainer.callbacks=[tests.test_processes.SlowValidation]"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *PROGRAM[1:]]
    program = [*(PROGRAM if launcher == "lightning" else torchrun), *LONG, *where]
    with (tmp_path / "errors").open("w") as errors:
        started = subprocess.Popen(program, env=environment(), stdout=errors, stderr=errors)
        try:
            until((tmp_path / "checkpoints").exists, 120)
            os.kill(running(tmp_path)[killed], signal.SIGKILL)
            until(lambda: started.poll() is not None and not running(tmp_path), 30)
        finally:
            for process in running(tmp_path).values():
                os.kill(process, signal.SIGKILL)
            started.kill()
            started.wait()
    said = f"error: process {killed} ended; process {1 - killed} cannot go on without it"
    assert said in (tmp_path / "errors").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not PROCESSES.is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("signalled", [(0,), (1,), (0, 1)], ids=str)
def test_a_signal_stops_all_processes_after_the_same_batch(signum, code, signalled, tmp_path):
    settings = [*LONG, "--trainer.precision=64-true"]
    stopped = [*settings, "--trainer.devices=2", f"--trainer.default_root_dir={tmp_path / 'stopped'}"]
    with (tmp_path / "errors").open("w") as errors:
        started = subprocess.Popen([*PROGRAM, *stopped], env=environment(), stdout=errors, stderr=errors)
        try:
            until((tmp_path / "stopped" / "checkpoints").exists, 120)
            processes = running(tmp_path / "stopped")
            for rank in signalled:
                os.kill(processes[rank], signum)
            until(lambda: started.poll() is not None and not running(tmp_path / "stopped"), 30)
        finally:
            for process in running(tmp_path / "stopped").values():
                os.kill(process, signal.SIGKILL)
            started.kill()
            started.wait()
    errors = (tmp_path / "errors").read_text()
    assert "Traceback" not in errors, errors
    assert started.returncode == (code if 0 in signalled else 143), errors  # the others only know that it stopped
    saved = torch.load(last_checkpoint(tmp_path / "stopped"), weights_only=True)
    steps = saved["global_step"]
    assert steps > 0
    whole, _ = run(
        "fit", [*PROGRAM[3:], *settings, "--trainer.strategy=auto", f"--trainer.max_steps={steps}"], tmp_path
    )
    for name, weight in whole["state_dict"].items():
        torch.testing.assert_close(saved["state_dict"][name], weight, rtol=0, atol=1e-8, msg=name)


@pytest.mark.slow
def test_two_nodes_of_one_process_each(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = settings_of("adversarial_training", tmp_path)
    whole, _ = run("fit", settings, tmp_path / "one")
    nodes = []
    for node in (0, 1):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
        torchrun += [f"--node_rank={node}", "--master_addr=127.0.0.1", f"--master_port={port}"]
        where = ["--trainer.devices=1", "--trainer.num_nodes=2", "--trainer.strategy=ddp"]
        where += [f"--trainer.default_root_dir={tmp_path / 'nodes'}"]
        program = [*torchrun, str(ROOT / "train.py"), "fit", *settings, *QUIET, *where]
        nodes.append(subprocess.Popen(program, env=environment(), stderr=subprocess.PIPE, text=True))
    try:
        for node in nodes:
            _, errors = node.communicate(timeout=300)
            assert node.returncode == 0, errors
    finally:
        for node in nodes:
            node.kill()
    both = torch.load(last_checkpoint(tmp_path / "nodes"), weights_only=True)
    for name, weight in whole["state_dict"].items():
        assert (both["state_dict"][name] - weight).abs().max() <= 1e-8, name
