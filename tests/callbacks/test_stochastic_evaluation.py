"""Networks with noise: every figure against a plain computation, and what noise can and cannot hide."""

import copy

import pytest
import torch

from callbacks import AdversarialEvaluation, AttackCase
from datamodules import Digits
from robust.attacks import PGD
from robust.networks import Noisy, injections, without_noise
from robust.random import numbered, part
from robust.threat_models import LinfBall
from tests.callbacks.trained import Plain, images, trainer_with

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def noisy(trained):
    """The trained network with noise after its convolution, enough to be wrong at times."""
    network = Noisy(copy.deepcopy(trained.classifier), ["0"], (1, 28, 28), initial_scale=1.0)
    return Plain(network, epsilon=0.05).eval()


def evaluate(module, attack, **settings):
    evaluation = AdversarialEvaluation({"pgd": AttackCase(attack)}, **settings)
    trainer = trainer_with(evaluation)
    figures = trainer.test(module, Digits(eval_batch_size=299), verbose=False)[0]
    start = "test/accuracy/"
    return {name.removeprefix(start): value for name, value in figures.items() if name.startswith(start)}


def test_figures_equal_a_plain_computation(noisy):
    x, y = images()
    expected, shares = {}, {}

    def judge(name, found):
        classes = [noisy(found).argmax(1) for _ in range(6)]
        right = torch.stack([each == y for each in classes]).float()
        votes = torch.stack([sum((each == label).int() for each in classes) for label in range(10)])
        figures = {name: right.mean(), f"{name}/std": right.mean(1).std()}
        expected.update(figures | {f"{name}/vote": (votes.argmax(0) == y).float().mean()})
        shares[name] = right.mean(0)

    attacks = {"pgd": PGD(3), "pgd/eot": PGD(3, eot_samples=4)}
    with torch.no_grad():
        with numbered((0,), range(299)), part():
            judge("clean", x)
        for name, attack in attacks.items():
            with numbered((0, 0), range(299)):
                with part():
                    found = attack(noisy, LinfBall(0.05), x, y)
                with part():
                    judge(name, found)
        with numbered((0, 0), range(299)):
            with part(), without_noise(noisy):
                found = PGD(3)(noisy, LinfBall(0.05), x, y)
            with part():
                judge("pgd/mean_network", found)
        with without_noise(noisy):
            for name, these in (("clean", x), ("pgd", found)):
                expected[f"{name}/noise_off"] = (noisy(these).argmax(1) == y).float().mean()
    worst = torch.stack([shares[name] for name in ("pgd", "pgd/eot", "pgd/mean_network")]).amin(0).mean()
    expected |= dict.fromkeys(("pgd/worst", "union", "average"), worst)

    measured = evaluate(noisy, PGD(3), num_samples=6, eot_samples=4)
    assert measured == pytest.approx({name: value.item() for name, value in expected.items()}, abs=1e-6)
    assert 0 < measured["pgd/std"] < measured["pgd/worst"] < measured["pgd"] < measured["clean"] < 1


def test_noise_that_hides_the_gradient_is_found_out(noisy):
    """Of much noise a single draw points anywhere; the mean of many does not, nor does the mean network."""
    loud = copy.deepcopy(noisy)
    injections(loud)[0].theta.data.fill_(1.5)
    loud.epsilon = 0.1
    figures = evaluate(loud, PGD(1, start="clean"))
    assert figures["pgd/eot"] < figures["pgd"] - 0.02
    assert figures["pgd/mean_network"] < figures["pgd"] - 0.005
    assert figures["clean/vote"] > figures["clean"] + 0.02


def test_attacks_that_average_themselves_have_no_variants_and_fit_runs_none(noisy):
    own = evaluate(noisy, PGD(1, eot_samples=2), num_samples=2)
    assert {name for name in own if name.startswith("pgd")} == {"pgd", "pgd/std", "pgd/vote"}

    evaluation = AdversarialEvaluation({"pgd": AttackCase(PGD(1))}, every_n_epochs=1, num_samples=2)
    trainer = trainer_with(evaluation, max_epochs=1, limit_train_batches=1)
    trainer.fit(copy.deepcopy(noisy), datamodule=Digits())
    names = {name for name in trainer.callback_metrics if "pgd" in name}
    assert names == {"val/accuracy/pgd", "val/accuracy/pgd/std", "val/accuracy/pgd/vote"}


def test_without_noise_it_is_evaluated_like_any_network(noisy):
    with without_noise(noisy):
        assert evaluate(noisy, PGD(1)).keys() == {"clean", "pgd", "union", "average"}


def test_without_noise_the_expectation_is_left_out(trained):
    attack = PGD(2, start="clean", eot_samples=7)
    passes = []
    hook = trained.classifier.register_forward_pre_hook(lambda *_: passes.append(1))
    figures = evaluate(trained, attack)
    hook.remove()
    assert len(passes) == 1 + 1 + 1 + 2 + 1  # a blank image, clean_error, clean, two steps, the verdict
    assert figures == evaluate(trained, PGD(2, start="clean"))
    assert attack.eot_samples == 7
