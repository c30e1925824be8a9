"""CUDA devices train, evaluate, bound and resume as CPUs do, in each precision; NCCL joins processes.

pytest -m gpu                                   # needs a CUDA device
ROBUST_TEST_DEVICE=cpu pytest -m gpu            # the same tests where there is none
"""

import json
import math
import os

import pytest
import torch
from hypothesis import given, settings

from robust.bounds import FeedForwardVerifier, certify
from robust.networks import DMSmall
from robust.threat_models import PixelBox
from tests.every_method import METHODS, settings_of
from tests.random_networks import networks, random_case
from tests.test_processes import QUICK, evaluations
from tests.testers import assert_equal, assert_registered, last_checkpoint, run

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("ROBUST_TEST_DEVICE", "cuda")
ONE = "--trainer.devices=1"
DRAWLESS = ("standard_training", "contextual_budgets", "contextual_budgets_range", "contextual_budgets_batch_norm")


def run_there(command, settings, folder):
    """Run the command line on the device, and return the outcome, whose record must name it."""
    trained, record = run(command, [*settings, ONE], folder, accelerator=DEVICE)
    if DEVICE == "cuda":
        assert record["device"] == f"1 x {torch.cuda.get_device_name()}"
    return trained, record


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight.cpu(), other[name].cpu(), rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_resumes(method, tmp_path):
    """Weights of methods that draw nothing are those of a CPU; a run that goes on on a CPU loads the same weights."""
    arguments = settings_of(method, tmp_path)
    trained, _ = run_there("fit", arguments, tmp_path / "gpu")
    assert trained["global_step"] > 0
    assert all(weight.isfinite().all() for weight in trained["state_dict"].values())
    if method in DRAWLESS:
        on_cpu, _ = run("fit", arguments, tmp_path / "cpu")
        assert_close(trained["state_dict"], on_cpu["state_dict"])
    further = ["--trainer.max_epochs=6", f"--ckpt_path={last_checkpoint(tmp_path / 'gpu')}"]
    resumed, _ = run("fit", [*arguments, *further], tmp_path / "resumed")
    assert resumed["epoch"] == 5


@pytest.mark.parametrize("method", QUICK)
def test_a_run_resumes_bit_for_bit(method, tmp_path):
    arguments = [*settings_of(method, tmp_path), "--trainer.deterministic=true", "--checkpoint.save_top_k=-1"]
    whole, _ = run_there("fit", arguments, tmp_path / "whole")
    checkpoint = tmp_path / "whole" / "checkpoints" / "epoch=2.ckpt"
    again, _ = run_there("fit", [*arguments, f"--ckpt_path={checkpoint}"], tmp_path / "again")
    for part in ("state_dict", "optimizer_states"):
        assert_equal(again[part], whole[part], part)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("method", QUICK)
def test_a_method_trains_in_less_precision(method, precision, tmp_path):
    arguments = [*settings_of(method, tmp_path), f"--trainer.precision={precision}"]
    trained, _ = run_there("fit", arguments, tmp_path)
    assert all(weight.isfinite().all() for weight in trained["state_dict"].values())


@pytest.mark.filterwarnings("ignore:torch.distributed.nn")  # Lightning's all_gather calls it
@pytest.mark.parametrize("method", QUICK)
def test_a_process_group_gives_the_same_weights(method, tmp_path):
    """One process, by NCCL on CUDA: the collective operations are called, and change nothing."""
    arguments = settings_of(method, tmp_path)
    alone, _ = run_there("fit", arguments, tmp_path / "alone")
    strategy = "--trainer.strategy=ddp_find_unused_parameters_true"
    try:
        together, _ = run_there("fit", [*arguments, strategy], tmp_path / "together")
    finally:
        torch.distributed.destroy_process_group()
    assert_close(together["state_dict"], alone["state_dict"])


@pytest.mark.parametrize("method", ["standard_training", "learn2perturb"])
def test_every_evaluation_measures(method, tmp_path):
    """Attacked <= clean accuracy, and the clean and certified accuracies that a CPU measures."""
    longer = ["--trainer.limit_train_batches=20"]
    longer += ["--model.adversarial_delay=5"] if method == "learn2perturb" else []
    run_there("fit", [*settings_of(method, tmp_path), *longer], tmp_path)
    arguments = [
        *settings_of(method, tmp_path),
        f"--ckpt_path={last_checkpoint(tmp_path)}",
        "--data.eval_batch_size=8",
        "--trainer.limit_test_batches=2",
    ]
    arguments.remove("--test_after_fit=false")
    arguments.remove("--trainer.callbacks=null")
    callbacks = evaluations(stochastic=method == "learn2perturb", few=False)
    of_all = f"--trainer.callbacks={json.dumps(callbacks)}"
    _, here = run_there("test", [*arguments, of_all], tmp_path / "gpu")
    measured = {name: value for name, value in here["metrics"].items() if name.startswith("test/")}
    assert_registered(measured)
    assert all(math.isfinite(value) for value in measured.values())
    assert 0 < measured["test/accuracy/union"] <= measured["test/accuracy/clean"]
    if method == "standard_training":
        _, there = run("test", [*arguments, of_all], tmp_path / "cpu")
        certified = [name for name in measured if "/certified_accuracy/" in name]
        assert certified
        for name in ("test/accuracy/clean", *certified):
            assert measured[name] == pytest.approx(there["metrics"][name], abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(networks)
def test_bounds_are_those_of_a_cpu_and_verdicts_hold_in_float64(network):
    """Margins in float32, and certificates next to zero, where TF32 or a GPU's rounding would show."""
    network.eval()
    x, y, budgets = random_case(network, 12)
    for method in ("ibp", "crown-ibp"):
        verifier = FeedForwardVerifier(method)
        network.double()
        reference = verifier.margins(network, PixelBox(budgets.double()).interval(x.double()), y).detach()
        network.float().to(DEVICE)
        there = [each.to(DEVICE) for each in (x, y, budgets)]
        margins = verifier.margins(network, PixelBox(there[2]).interval(there[0]), there[1])
        size = float(reference.abs().max())
        margins = margins.detach().double().cpu()
        torch.testing.assert_close(margins, reference, rtol=1e-4, atol=1e-5 * (1 + size))
        certified = certify(verifier, network, PixelBox(there[2]), there[0], there[1]).certified.cpu()
        assert not (certified & (reference <= -1e-12 * (1 + size)).any(1)).any()
        network.cpu()


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("tf32", 0.02), ("bfloat16", 0.1)])
def test_the_loss_and_its_gradients_are_those_of_a_cpu(precision, tolerance):
    network = DMSmall((1, 28, 28))
    x, y, budgets = torch.rand(4, 1, 28, 28), torch.randint(10, (4,)), 0.05 * torch.rand(4, 1, 28, 28)
    results = []
    for device in ("cpu", DEVICE):
        network.to(device).zero_grad()
        leaf = budgets.clone().to(device).requires_grad_()
        region = PixelBox(leaf).interval(x.to(device))
        verifier = FeedForwardVerifier(training_precision="float32" if device == "cpu" else precision)
        loss = verifier.cross_entropy(network, region, y.to(device), 0.5)
        loss.sum().backward()
        results.append([loss.detach(), leaf.grad, *(weight.grad.clone() for weight in network.parameters())])
    for there, here in zip(*results, strict=True):
        size = float(there.detach().abs().max())
        torch.testing.assert_close(here.cpu(), there, rtol=tolerance, atol=tolerance * size)
