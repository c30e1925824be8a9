"""Networks with noise: metrics equal a plain computation; gradients that noise masks."""

import copy

import pytest
import torch
from torch import nn

from callbacks import AdversarialEvaluation, AttackCase
from callbacks.evaluation.base import Evaluation
from datamodules import Digits
from robust.attacks import PGD
from robust.metrics import Accuracy
from robust.networks import Noisy, injections, without_noise
from robust.random import numbered, part
from robust.threat_models import LinfBall
from tests.callbacks.trained import Plain, images, trainer_with

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def noisy(trained):
    """The trained network with noise after its convolution, enough to change some predictions."""
    network = Noisy(copy.deepcopy(trained.classifier), ["0"], (1, 28, 28), initial_scale=1.0)
    return Plain(network, epsilon=0.05).eval()


class AllZeros(Digits):
    """Images of class 0 alone."""

    def load(self, split):
        images = super().load(split)
        images.labels.zero_()
        return images


def evaluate(module, attack, **settings):
    evaluation = AdversarialEvaluation({"pgd": AttackCase(attack)}, **settings)
    trainer = trainer_with(evaluation)
    metrics = trainer.test(module, Digits(eval_batch_size=299), verbose=False)[0]
    start = "test/accuracy/"
    accuracies = {name.removeprefix(start): value for name, value in metrics.items() if name.startswith(start)}
    return {name.replace(f"/linf_{module.epsilon}", ""): value for name, value in accuracies.items()}


def test_metrics_equal_a_plain_computation(noisy):
    x, y = images()
    expected, verdicts = {}, {}

    def classify(name, x_adv):
        classes = [noisy(x_adv).argmax(1) for _ in range(6)]
        correct = torch.stack([each == y for each in classes]).float()
        votes = torch.stack([sum((each == label).int() for each in classes) for label in range(10)])
        metrics = {name: correct.mean(), f"{name}/std": correct.mean(1).std()}
        expected.update(metrics | {f"{name}/vote": (votes.argmax(0) == y).float().mean()})
        verdicts[name] = correct.T.tolist()

    attacks = {"pgd": PGD(3), "pgd_eot": PGD(3, num_samples=4)}
    with torch.no_grad():
        with numbered((0,), range(299)), part():
            classify("clean", x)
        for name, attack in attacks.items():
            with numbered((0, 0), range(299)):
                with part():
                    x_adv = attack(noisy, LinfBall(0.05), x, y)
                with part():
                    classify(name, x_adv)
        with numbered((0, 0), range(299)):
            with part(), without_noise(noisy):
                x_adv = PGD(3)(noisy, LinfBall(0.05), x, y)
            with part():
                classify("pgd_mean_network", x_adv)
        with without_noise(noisy):
            for name, these in (("clean", x), ("pgd_mean_network", x_adv)):
                expected[f"{name}/noise_off"] = (noisy(these).argmax(1) == y).float().mean()
    right = 0.0
    for image in range(299):
        cases = [verdicts[name][image] for name in ("pgd", "pgd_eot", "pgd_mean_network")]
        for number in range(6):
            strongest = min(cases, key=lambda passes: sum(passes[:number]) + sum(passes[number + 1 :]))
            right += strongest[number]
    alone = [expected[name] for name in ("pgd", "pgd_eot", "pgd_mean_network")]
    expected |= dict.fromkeys(("pgd_worst", "union", "average"), min(torch.tensor(right / (6 * 299)), *alone))

    measured = evaluate(noisy, PGD(3), num_samples=6, gradient_samples=4)
    expected["clean/attacked"] = expected["clean"]
    del expected["clean"], measured["clean"]  # this is a single pass
    assert measured == pytest.approx({name: value.item() for name, value in expected.items()}, abs=1e-6)
    assert 0 < measured["pgd/std"] < measured["pgd_worst"] < measured["clean/attacked"] < 1


class WithNoise(Plain):
    """A method whose network has noise, whatever the network."""

    stochastic = True

    def check_shapes(self, *_):
        pass


class Shifted(nn.Module):
    """A network whose passes are correct in a fraction of cases, which falls with the brightness of the images."""

    def forward(self, x):
        chance = 0.5 - x.mean((1, 2, 3))
        correct = (torch.rand(len(x)) < chance).float()
        return torch.stack([correct, 1 - correct], 1)


@pytest.mark.filterwarnings("ignore:model.classifier. its outputs sum to 1")
def test_no_worst_is_above_a_single_attack_or_group():
    """With few passes the attack chosen for an image is often the weaker one; a single attack may then leave less."""
    module = WithNoise(Shifted(), epsilon=0.05)
    shades = {"dark": 0.0, "bright": 0.02}
    cases = {
        f"{name}_{group}": AttackCase(lambda _, __, x, ___, v=value: torch.full_like(x, v), LinfBall(1.0), group)
        for group in ("one", "other")
        for name, value in shades.items()
    }
    evaluation = AdversarialEvaluation(cases, num_samples=2)
    metrics = trainer_with(evaluation).test(module, AllZeros(eval_batch_size=299), verbose=False)[0]
    accuracy = {name.removeprefix("test/accuracy/"): value for name, value in metrics.items()}
    for group in ("one", "other"):
        attacks = [accuracy[f"{name}_{group}/linf_1"] for name in shades]
        assert accuracy[f"worst/{group}"] <= min(attacks)
        assert accuracy["union"] <= accuracy[f"worst/{group}"]
    assert accuracy["average"] == pytest.approx((accuracy["worst/one"] + accuracy["worst/other"]) / 2)


def test_noise_that_hides_the_gradient_is_found_out(noisy):
    """With much noise a single gradient is random; the mean of many and that of the mean network are not."""
    loud = copy.deepcopy(noisy)
    injections(loud)[0].theta.data.fill_(1.5)
    loud.epsilon = 0.1
    metrics = evaluate(loud, PGD(1, start="clean"))
    assert metrics["pgd_eot"] < metrics["pgd"] - 0.02
    assert metrics["pgd_mean_network"] < metrics["pgd"] - 0.005
    assert metrics["clean/vote"] > metrics["clean/attacked"] + 0.02


def test_attacks_that_average_themselves_have_no_variants_and_fit_runs_none(noisy):
    own = evaluate(noisy, PGD(1, num_samples=2), num_samples=2)
    assert {name for name in own if name.startswith("pgd")} == {"pgd", "pgd/std", "pgd/vote"}

    evaluation = AdversarialEvaluation({"pgd": AttackCase(PGD(1))}, every_n_epochs=1, num_samples=2)
    trainer = trainer_with(evaluation, max_epochs=1, limit_train_batches=1)
    trainer.fit(copy.deepcopy(noisy), datamodule=Digits())
    names = {name for name in trainer.callback_metrics if "pgd" in name}
    assert names == {f"val/accuracy/pgd/linf_0.05{part}" for part in ("", "/std", "/vote")}


def test_without_noise_the_metrics_are_those_of_any_network(noisy):
    with without_noise(noisy):
        assert evaluate(noisy, PGD(1)).keys() == {"clean", "pgd", "union", "average"}


def test_without_noise_the_expectation_is_left_out(trained):
    attack = PGD(2, start="clean", num_samples=7)
    passes = []
    hook = trained.classifier.register_forward_pre_hook(lambda *_: passes.append(1))
    metrics = evaluate(trained, attack)
    hook.remove()
    # blank images, two passes and two of one image that agree, one for its weights, accuracy/clean, clean images, two
    # steps, the verdict
    assert len(passes) == 1 + 4 + 1 + 1 + 1 + 2 + 1
    assert metrics == evaluate(trained, PGD(2, start="clean"))
    assert attack.num_samples == 7


class OwnAccuracy(Evaluation):
    """An evaluation of one's own that passes the images once, and takes no care of seeds."""

    def evaluate(self, module, x, y):
        self.update("own", Accuracy, module(x).argmax(1) == y)


def test_draws_of_an_own_evaluation_do_not_depend_on_the_batches(noisy):
    """Regression: they were those of a generator that went on from batch to batch."""
    values = [
        trainer_with(OwnAccuracy()).test(noisy, Digits(eval_batch_size=size), verbose=False)[0]["test/own"]
        for size in (299, 64)
    ]
    assert values[0] == values[1]
