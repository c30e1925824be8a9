"""Adversarial metrics equal a plain computation, and the effects of the settings."""

import copy

import pytest
import torch

from callbacks import AdversarialEvaluation, AttackCase, CertifiedEvaluation
from datamodules import Digits
from lightning_modules import ContextualBudgets
from robust.attacks import FGSM, PGD
from robust.errors import InvalidAttackError, SettingError
from robust.networks import BudgetGenerator, DMSmall
from robust.threat_models import L1Ball, L2Ball, LinfBall
from tests.callbacks.trained import Plain, images, small, trainer_with

CASES = {
    "fgsm": AttackCase(FGSM(), group="linf"),
    "pgd": AttackCase(PGD(3, start="clean"), LinfBall(0.04), "linf"),
    "l2": AttackCase(PGD(3, start="clean"), L2Ball(1.0)),
    "l1": AttackCase(PGD(3, start="clean"), L1Ball(4.0)),
}


@pytest.mark.parametrize("inference_mode", [True, False])
def test_metrics_equal_a_plain_computation(trained, inference_mode):
    x, y = images()
    correct = {"clean": trained(x).argmax(1) == y}
    for name, case in CASES.items():
        x_adv = case.attack(trained, case.threat_model or LinfBall(0.05), x, y)
        correct[name] = correct["clean"] & (trained(x_adv).argmax(1) == y)
    correct["linf"] = correct["fgsm"] & correct["pgd"]
    correct["union"] = correct["linf"] & correct["l1"] & correct["l2"]
    names = {"fgsm": "fgsm/linf_0.05", "pgd": "pgd/linf_0.04", "l2": "l2/l2_1", "l1": "l1/l1_4", "linf": "worst/linf"}
    means = {name: mask.float().mean().item() for name, mask in correct.items()}
    expected = {f"test/accuracy/{names.get(name, name)}": mean for name, mean in means.items()}
    expected["test/accuracy/average"] = sum(means[group] for group in ("linf", "l1", "l2")) / 3
    expected["test/attacked_samples"] = 299

    trainer = trainer_with(AdversarialEvaluation(CASES), inference_mode=inference_mode)
    measured = trainer.test(trained, Digits(eval_batch_size=64), verbose=False)[0]
    assert measured == pytest.approx(expected, abs=1e-6)
    assert (
        0 < measured["test/accuracy/union"] < measured["test/accuracy/worst/linf"] < measured["test/accuracy/clean"] < 1
    )


def test_validation_is_attacked_every_n_epochs_and_at_the_end_on_at_most_m_batches():
    seen = []

    def noting(network, threat_model, x, y):
        assert not network.training
        assert not torch.is_inference_mode_enabled()
        seen.append(trainer.current_epoch)
        return x

    module = Plain(small(), epsilon=0.1)
    data = Digits(eval_batch_size=64)
    fit = {"max_epochs": 5, "limit_train_batches": 40, "num_sanity_val_steps": 2}
    for every, epochs in ((2, [1, 3, 4]), (None, [])):
        seen.clear()
        evaluation = AdversarialEvaluation({"none": AttackCase(noting)}, every_n_epochs=every, max_batches=1)
        trainer = trainer_with(evaluation, **fit)
        trainer.fit(module, datamodule=data)
        assert seen == epochs
        assert ("val/accuracy/none/linf_0.1" in trainer.callback_metrics) == bool(epochs)
    assert trainer.validate(module, data, verbose=False)[0]["val/attacked_samples"] == 64


def test_a_case_without_threat_model_attacks_in_each_of_the_modules():
    torch.manual_seed(0)
    module = ContextualBudgets(DMSmall(), BudgetGenerator(), epsilon=0.02)
    evaluation = AdversarialEvaluation({"fgsm": AttackCase(FGSM()), "mine": AttackCase(FGSM(), LinfBall(0.01), "a")})
    metrics = trainer_with(evaluation, limit_test_batches=1).test(module, Digits(eval_batch_size=32), verbose=False)[0]
    names = {name.removeprefix("test/accuracy/") for name in metrics if "accuracy" in name}
    assert names == {
        "clean", "fgsm/own_budgets", "fgsm/linf_0.02", "mine/linf_0.01", "worst/a", "union", "average",
    }  # fmt: skip


def test_cases_of_one_name_are_in_different_threat_models():
    torch.manual_seed(0)
    module = Plain(small(), epsilon=0.1)
    same = {"a": AttackCase(FGSM()), "b": AttackCase(FGSM(), LinfBall(0.1), name="a")}
    with pytest.raises(SettingError, match=r"^AdversarialEvaluation.attacks: got 'a/linf_0.1'; two cases have this"):
        trainer_with(AdversarialEvaluation(same)).test(module, Digits(), verbose=False)
    other = {"a": AttackCase(FGSM()), "b": AttackCase(FGSM(), LinfBall(0.2), name="a")}
    trainer = trainer_with(AdversarialEvaluation(other), limit_test_batches=1)
    metrics = trainer.test(module, Digits(eval_batch_size=4), verbose=False)[0]
    assert {"test/accuracy/a/linf_0.1", "test/accuracy/a/linf_0.2"} <= metrics.keys()


def test_two_evaluations_do_not_log_the_same_metric():
    callbacks = [CertifiedEvaluation(pgd_steps=5), AdversarialEvaluation({"pgd_5": AttackCase(PGD(5))})]
    message = r"^trainer.callbacks: got 'accuracy/pgd_5/linf_0.01'; CertifiedEvaluation and Adversarial.* both log it"
    with pytest.raises(SettingError, match=message):
        trainer_with(*callbacks, limit_test_batches=1).test(
            Plain(small(), epsilon=0.01), Digits(eval_batch_size=4), verbose=False
        )


def test_an_attack_that_leaves_the_ball_or_the_range_stops_the_evaluation(trained):
    def far(network, threat_model, x, y):
        return (x + 0.0502).clamp(0, 1)

    def bright(network, threat_model, x, y):
        return x + 0.01

    nothing = (lambda network, threat_model, x, y: x[:1], lambda *_: torch.nan * _[2], lambda *_: None)
    for attack in (far, bright, *nothing):
        trainer = trainer_with(AdversarialEvaluation({"broken": AttackCase(attack)}), limit_test_batches=1)
        with pytest.raises(InvalidAttackError, match=r"invalid attack broken/linf_0.05: (far|bright|<lambda>) gave"):
            trainer.test(copy.deepcopy(trained), Digits(), verbose=False)


class Coin(Plain):
    """A network that is correct in a fixed fraction of passes, on every image."""

    stochastic = True
    fraction = 0.6

    def forward(self, x):
        self.passes = getattr(self, "passes", 0) + len(x)
        correct = (torch.rand(len(x), 1) < self.fraction).float()
        return torch.cat([correct, 1 - correct], 1) * torch.ones(1, 10).cumsum(1)[:, :1]


class CoinDigits(Digits):
    """Images of class 0 only."""

    def load(self, split):
        images = super().load(split)
        images.labels.zero_()
        return images


def test_metrics_of_stochastic_networks_are_means_over_fresh_passes():
    module = Coin(small(), epsilon=0.1)
    module.check_shapes = lambda *_: None
    cases = {name: AttackCase(lambda network, threat_model, x, y: x) for name in ("one", "other")}
    measured = {}
    for num_samples in (1, 10):
        module.passes = 0
        evaluation = AdversarialEvaluation(cases, num_samples=num_samples)
        measured[num_samples] = trainer_with(evaluation).test(module, CoinDigits(), verbose=False)[0]
        assert module.passes == 299 * (
            1 + 3 * num_samples
        )  # accuracy/clean's, and all examples under clean and two cases
    # binomial: standard deviations of 0.028 and 0.009
    assert measured[1]["test/accuracy/one/linf_0.1"] == pytest.approx(0.6, abs=0.1)
    assert measured[10]["test/accuracy/one/linf_0.1"] == pytest.approx(0.6, abs=0.03)
    # each further attack lowers a union of single passes (0.36 for two); a mean over many passes falls less
    assert measured[1]["test/accuracy/union"] == pytest.approx(0.36, abs=0.1)
    assert measured[10]["test/accuracy/union"] > 0.5


def test_metrics_do_not_depend_on_earlier_draws_and_the_generator_is_restored(trained):
    alone = {"noise": AttackCase(lambda network, threat_model, x, y: threat_model.sample(x), LinfBall(0.4))}
    data = Digits(eval_batch_size=100)
    torch.manual_seed(1)
    first = trainer_with(AdversarialEvaluation(alone)).test(trained, data, verbose=False)[0]
    state = torch.get_rng_state()
    second = trainer_with(AdversarialEvaluation(alone)).test(trained, data, verbose=False)[0]
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    other = trainer_with(AdversarialEvaluation(alone, seed=1)).test(trained, data, verbose=False)[0]
    assert other["test/accuracy/noise/linf_0.4"] != first["test/accuracy/noise/linf_0.4"]


def test_a_stopped_evaluation_leaves_no_trace_in_the_next(trained):
    def stop_in_the_second_batch(network, threat_model, x, y):
        if len(evaluation.metrics) > 0 and evaluation.metrics["attacked_samples"].update_count == 1 and stopping:
            raise KeyError
        return x

    evaluation, stopping = AdversarialEvaluation({"none": AttackCase(stop_in_the_second_batch)}), True
    with pytest.raises(KeyError):
        trainer_with(evaluation).test(copy.deepcopy(trained), Digits(eval_batch_size=50), verbose=False)
    stopping = False
    metrics = trainer_with(evaluation).test(copy.deepcopy(trained), Digits(eval_batch_size=50), verbose=False)[0]
    assert metrics["test/attacked_samples"] == 299


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("attacks", {}),
        ("attacks", {"clean": AttackCase(FGSM())}),
        ("attacks", {"a": AttackCase(FGSM(), name="union")}),
        ("attacks", {"a/b": AttackCase(FGSM())}),
        ("attacks", {"a": AttackCase(FGSM(), group="a/b")}),
        ("every_n_epochs", 0),
        ("max_batches", 0),
        ("num_samples", 0),
    ],
)
def test_wrong_settings(setting, value):
    with pytest.raises(SettingError, match=f"^AdversarialEvaluation.{setting}: got"):
        AdversarialEvaluation(**({"attacks": CASES} | {setting: value}))
