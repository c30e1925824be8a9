"""The passes of each method's training equal a count by hand; a resumed training goes on; records have the cost."""

import json

import pytest
import torch
from torch import nn

from robust.attacks import PGD
from robust.bounds import FeedForwardVerifier, LirpaVerifier
from robust.passes import PassCounter, uncounted
from robust.threat_models import LinfBall
from tests.every_method import settings_of
from tests.testers import outcome, run

BATCH, EPOCHS = 8, 5  # of one batch
SLOW = pytest.mark.slow
# forward and backward passes of an image in all epochs, by network
BY_HAND = [
    # the attack's ten steps, and the step on what it found
    ("adversarial_training", {"classifier": (5 * 11, 5 * 11)}),
    # five full passes; what the first layer alone computes does not count
    ("yopo", {"classifier": (5 * 5, 5 * 5)}),
    # five steps of PGD; the lookahead's two passes, three backward since one is differentiated twice; three images
    (
        "mng_ac --model.attack_l1.steps=5",
        {"classifier": (5 * (5 + 2 + 3), 5 * (5 + 3 + 3)), "generator": (5 * 2, 5 * 1)},
    ),
    # interval bounds at the end of the ramp
    (
        "contextual_budgets --epsilon_schedule.shape=constant",
        {"classifier": (5 * 2, 5 * 2), "generator": (5 * 1, 5 * 1)},
    ),
    # a gradient of each of ten logits for every fourth image
    ("cross_lipschitz", {"classifier": (5 * 1.25, 5 * (1 + 10 * 0.25))}),
    # three steps on the codes of every other image
    (
        "on_manifold_adversarial_training",
        {
            "classifier": (5 * (1 + 0.5 * 3), 5 * (1 + 0.5 * 3)),
            "autoencoder.encoder": (5 * 0.5, 0),
            "autoencoder.decoder": (5 * 0.5 * (3 + 1), 5 * 0.5 * 3),
        },
    ),
    pytest.param("standard_training", {"classifier": (5, 5)}, marks=SLOW),
    pytest.param("trades", {"classifier": (5 * (1 + 10 + 2), 5 * (10 + 2))}, marks=SLOW),
    pytest.param("free_adversarial_training", {"classifier": (5 * 8, 5 * 8)}, marks=SLOW),
    # after one epoch, two attacks more, each with a verdict
    pytest.param("instance_adaptive_training", {"classifier": (11 + 4 * 33, 11 + 4 * 31)}, marks=SLOW),
    pytest.param("weighted_minimax", {"classifier": (5 * 11, 5 * 11)}, marks=SLOW),
    pytest.param("weighted_trades", {"classifier": (5 * 13, 5 * 12)}, marks=SLOW),
    pytest.param("mixed_adversarial_training", {"classifier": (5 * 9, 5 * 9)}, marks=SLOW),
    pytest.param("parametric_noise_injection", {"classifier": (1 + 4 * 9, 1 + 4 * 9)}, marks=SLOW),
    pytest.param("adversarial_bnn", {"classifier": (5 * 8, 5 * 8)}, marks=SLOW),
    pytest.param("learn2perturb", {"classifier": (2 + 3 * 9, 2 + 3 * 9)}, marks=SLOW),
    pytest.param("sat --model.attack_l1.steps=5", {"classifier": (5 * 6, 5 * 6)}, marks=SLOW),
    pytest.param("sat_ac --model.attack_l1.steps=5", {"classifier": (5 * 8, 5 * 8)}, marks=SLOW),
    pytest.param("average", {"classifier": (5 * 23, 5 * 23)}, marks=SLOW),
    pytest.param("maximum", {"classifier": (5 * 23, 5 * 23)}, marks=SLOW),
    # ten steps, each with a gradient and three trials
    pytest.param("msd", {"classifier": (5 * 41, 5 * 11)}, marks=SLOW),
    # an epoch of the classifier, one of the generator, three of both
    pytest.param(
        "robustness_score",
        {"classifier": (1 + 2 + 3 * 4, 1 + 1 + 3 * 3), "generator": (1 + 3 * 2, 1 + 3)},
        marks=SLOW,
    ),
    # the first batch trains the encoder alone
    pytest.param("wasserstein_autoencoder", {"autoencoder.encoder": (5, 5), "autoencoder.decoder": (4, 4)}, marks=SLOW),
    pytest.param(
        "on_manifold_robustness",
        {"classifier": (5 * 6, 5 * 6), "autoencoder.encoder": (5, 0), "autoencoder.decoder": (5 * 5, 0)},
        marks=SLOW,
    ),
]


def small(name, folder):
    """Arguments of ``fit`` for one batch an epoch."""
    name, *changes = name.split()
    return [*settings_of(name, folder, BATCH), "--trainer.limit_train_batches=1", *changes]


@pytest.mark.filterwarnings("ignore:epsilon_schedule.shape")  # a shorter test without the ramp
@pytest.mark.thorough
@pytest.mark.parametrize(("name", "expected"), BY_HAND)
def test_passes_equal_a_count_by_hand(name, expected, tmp_path):
    checkpoint, record = run("fit", small(name, tmp_path), tmp_path / "run")
    cost = record["training_cost"]
    counted = {network: (each["forward"], each["backward"]) for network, each in cost["passes"].items()}
    assert counted == {
        network: (BATCH * forward, BATCH * backward) for network, (forward, backward) in expected.items()
    }
    sizes = {network: each["multiplications"] for network, each in cost["passes"].items()}
    unit = next(iter(sizes.values()))
    assert (unit > 0) == (len(sizes) > 1)
    relative = {network: size / unit if unit else 1.0 for network, size in sizes.items()}
    whole = sum((f + 2 * b) * BATCH * relative[network] for network, (f, b) in expected.items())
    assert cost["forward_equivalents"] == pytest.approx(whole, abs=0.1)
    assert cost["parameters"] == sum(p.numel() for n, p in checkpoint["state_dict"].items() if n in trained(checkpoint))
    assert 0 < cost["seconds"] < record["wall_time"] + 0.1
    assert checkpoint["training_cost"]["passes"] == cost["passes"]


def test_a_network_behind_another_one_is_measured_in_bf16_too(tmp_path):
    settings = [*small("wasserstein_autoencoder", tmp_path), "--model.pretraining_batches=0"]
    whole = run("fit", settings, tmp_path / "whole")[1]["training_cost"]
    mixed = run("fit", [*settings, "--trainer.precision=bf16-mixed"], tmp_path / "mixed")[1]["training_cost"]
    assert mixed["passes"] == whole["passes"]


@pytest.mark.thorough
def test_a_generator_that_learns_in_every_third_batch_costs_less(tmp_path):
    settings = [*small("mng_ac", tmp_path), "--trainer.limit_train_batches=3", "--trainer.max_epochs=1"]
    passes = [
        run("fit", [*settings, f"--model.generator_every={n}"], tmp_path / str(n))[1]["training_cost"]["passes"]
        for n in (1, 3)
    ]
    counted = [(each["generator"]["forward"], each["generator"]["backward"]) for each in passes]
    assert counted == [(6 * BATCH, 3 * BATCH), (4 * BATCH, BATCH)]


def trained(checkpoint):
    """Names of the parameters in a checkpoint: what is no buffer of batch normalisation."""
    buffers = ("running_mean", "running_var", "num_batches_tracked", "mean", "std", "code_low", "code_high")
    return [name for name in checkpoint["state_dict"] if name.rpartition(".")[2] not in buffers]


@pytest.mark.thorough
def test_a_resumed_training_continues_to_count_and_a_test_has_the_cost(tmp_path):
    settings = small("adversarial_training_early_stop", tmp_path)
    whole = run("fit", settings, tmp_path / "whole")[1]["training_cost"]
    first, _ = run("fit", [*settings, "--trainer.max_epochs=3"], tmp_path / "first")
    again = [f"--ckpt_path={tmp_path / 'first' / 'checkpoints' / 'last.ckpt'}"]
    resumed = run("fit", [*settings, *again], tmp_path / "resumed")[1]["training_cost"]
    assert resumed["passes"] == whole["passes"]
    assert resumed["seconds"] > first["training_cost"]["seconds"]

    few = ["--data.test_images=4", "--trainer.callbacks=[]", "--trainer.limit_test_batches=1"]
    tested = [f"--ckpt_path={tmp_path / 'resumed' / 'checkpoints' / 'last.ckpt'}", *few]
    _, record = run("test", [*settings, *tested], tmp_path / "test")
    assert record["training_cost"] == resumed
    assert record["metrics"]["test/training_cost/forward_equivalents"] == pytest.approx(whole["forward_equivalents"])

    del first["training_cost"]  # as of an older version
    torch.save(first, tmp_path / "old.ckpt")
    old = [f"--ckpt_path={tmp_path / 'old.ckpt'}"]
    assert run("fit", [*settings, *old], tmp_path / "old")[1]["training_cost"] is None
    assert "training_cost" in json.loads((tmp_path / "old" / "results.json").read_text())["fit"]
    assert outcome(tmp_path / "old")[0]["training_cost"] is None


@pytest.mark.parametrize("verifier", [FeedForwardVerifier(), LirpaVerifier()])
@pytest.mark.parametrize(("crown_weight", "passes"), [(0.0, 2), (0.5, 3), (1.0, 3)])
def test_bounds_count_intervals_and_a_row(verifier, crown_weight, passes):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.long)
    counter = PassCounter({"classifier": network})
    counter.start()
    bound = verifier.cross_entropy(network, LinfBall(0.1).interval(x), y, crown_weight)
    bound.sum().backward()
    with uncounted():
        network(x)
    counter.detach()
    network(x)
    assert counter.forward == counter.backward == {"classifier": 5 * passes}
    assert not network._forward_hooks


def test_the_search_for_the_cause_of_a_zero_gradient_does_not_count():
    """A network that is constant has no slope, which is no error: the attack looks at other points, and goes on."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    nn.init.zeros_(network[1].weight)
    counter = PassCounter({"classifier": network})
    counter.start()
    try:
        PGD(steps=2)(network, LinfBall(0.1), torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.long))
    finally:
        counter.stop()
    assert counter.forward == {"classifier": 10}
