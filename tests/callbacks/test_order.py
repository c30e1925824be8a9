"""Certified <= attacked <= clean, within and between evaluations; the module's verifier is the default."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from callbacks import AdversarialEvaluation, AttackCase, CertifiedEvaluation, CertifiedVolume, WeightedMinimaxEvaluation
from datamodules import Digits
from lightning_modules import ContextualBudgets, StandardTraining
from robust.attacks import PGD
from robust.bounds import FeedForwardVerifier, LargestCertifiedBox, LirpaVerifier
from robust.errors import ContradictionError, SettingError
from robust.networks import BudgetGenerator, DMSmall
from robust.threat_models import L2Ball, LinfBall
from tests.callbacks.trained import images, trainer_with


class AllOfThem(FeedForwardVerifier):
    """Certifies everything."""

    def margins(self, network, box, y):
        return torch.ones(len(y), 9)


def measured(module, *callbacks, **settings):
    return trainer_with(*callbacks, **settings).test(copy.deepcopy(module), Digits(eval_batch_size=64), verbose=False)[
        0
    ]


def test_a_copy_of_a_tested_module_can_be_tested():
    module = StandardTraining(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)))
    first, again = (measured(module, limit_test_batches=1) for _ in range(2))
    trainer_with(limit_test_batches=1).test(module, Digits(eval_batch_size=64), verbose=False)
    assert measured(module, limit_test_batches=1) == again == first


def measured_where_correct(module, *callbacks):
    """Test on the correct images, with a plain loader of batches of 64."""
    module = copy.deepcopy(module).eval()
    x, y = images()
    correct = module(x).argmax(1) == y
    loader = DataLoader(TensorDataset(x[correct], y[correct]), 64)
    return trainer_with(*callbacks).test(module, loader, verbose=False)[0]


def test_the_attack_of_a_test_catches_wrong_certificates(trained):
    with pytest.raises(
        ContradictionError, match=r"AllOfThem certified \d+ of 64 .* under 5 steps of PGD .* at data indices"
    ):
        measured_where_correct(trained, CertifiedEvaluation(AllOfThem(), epsilons=[0.3]))


def test_without_an_attack_certified_examples_are_still_clean(trained):
    x, y = images()
    wrong = (trained(x).argmax(1) != y).nonzero().squeeze(1)
    assert len(wrong) > 0
    first = wrong[wrong // 64 == wrong[0] // 64]  # those of the first batch that has any
    shown = ", ".join(str(index) for index in first[:5].tolist())
    with pytest.raises(ContradictionError, match=f"misclassified without perturbation, at data indices {shown}"):
        measured(trained, CertifiedEvaluation(AllOfThem(), pgd_steps=0))


def test_the_accuracy_under_the_short_attack_lies_between_certified_and_clean(trained):
    metrics = measured(trained, CertifiedEvaluation(epsilons=[0.01, 0.03]))
    for ball in ("linf_0.01", "linf_0.03"):
        attacked = metrics[f"test/accuracy/pgd_5/{ball}"]
        assert metrics[f"test/certified_accuracy/{ball}"] <= attacked <= metrics["test/accuracy/clean"]
    assert attacked < metrics["test/accuracy/clean"]
    assert not any("pgd" in name for name in measured(trained, CertifiedEvaluation(pgd_steps=0)))


def test_there_is_no_attack_in_validation_unless_asked(trained):
    for steps, there in ((None, False), (2, True)):
        trainer = trainer_with(CertifiedEvaluation(pgd_steps=steps), limit_val_batches=1)
        metrics = trainer.validate(copy.deepcopy(trained), Digits(), verbose=False)[0]
        assert ("val/accuracy/pgd_2/linf_0.05" in metrics) == there


def test_the_attack_does_not_depend_on_earlier_draws_and_the_generator_is_restored(trained):
    metrics = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        metrics.append(measured(trained, CertifiedEvaluation(pgd_steps=1, epsilons=[0.02])))
        assert torch.equal(torch.get_rng_state(), state)
    assert metrics[0] == metrics[1]


# the second is inside the first, whichever the kind
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("case", "caught"),
    [
        (AttackCase(PGD(5)), True),
        (AttackCase(PGD(5), LinfBall(0.2)), True),
        (AttackCase(PGD(5), norm="linf", epsilon=0.1), True),
        (AttackCase(PGD(5), LinfBall(0.5)), False),
        (AttackCase(PGD(5), L2Ball(3.0)), False),
    ],
)
def test_attacks_of_another_evaluation_are_compared_in_subsets(case, caught, first, trained):
    evaluations = [CertifiedEvaluation(AllOfThem(), epsilons=[0.3], pgd_steps=0), AdversarialEvaluation({"mine": case})]
    module = copy.deepcopy(trained)
    module.epsilon = 0.2
    if caught:
        with pytest.raises(
            ContradictionError, match=r"AllOfThem certified \d+ .* perturbation or under mine/linf_0.[12], at data"
        ):
            measured_where_correct(module, *(evaluations if first else evaluations[::-1]))
    else:
        measured_where_correct(module, *evaluations)


def test_learned_budgets_are_compared_too(trained):
    module = ContextualBudgets(copy.deepcopy(trained.classifier), BudgetGenerator(), epsilon=0.2)
    evaluations = [CertifiedEvaluation(AllOfThem(), pgd_steps=0), AdversarialEvaluation({"pgd": AttackCase(PGD(5))})]
    with pytest.raises(ContradictionError, match=r"under pgd/(own_budgets|linf_0.2), at data"):
        measured_where_correct(module, *evaluations)


def test_an_attack_cannot_make_a_misclassified_image_correct():
    """With one start PGD returns its last image, which can be correct although the clean image is misclassified."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():  # class 1 for images of a high mean, such as a random start in this ball, else 0
        network[1].weight.zero_()
        network[1].weight[1] = 1.0
        network[1].bias.copy_(torch.tensor([300.0, 0.0] + [-1e6] * 8))
    evaluation = WeightedMinimaxEvaluation(steps=1, step_size=1e-9, epsilon=1.0, restarts=1, alphas=[1.0])
    metrics = measured(StandardTraining(network, epsilon=0.5), evaluation)
    x, y = images()
    expected = ((x.flatten(1).sum(1) > 300) & (y == 1)).double().mean().item()
    assert metrics["test/accuracy/a_rob/linf_1"] == pytest.approx(expected, abs=1e-6)
    assert expected < 0.05 < metrics["test/accuracy/clean"], "about a tenth of the images is of class 1, and dark"


class Quotient(nn.Module):
    """A network that auto_LiRPA alone can bound."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 5, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(4 * 8 * 8, 10)

    def forward(self, x):
        h = F.relu(self.first(x))
        return self.last(torch.flatten(h / (1 + F.relu(self.second(h))), 1))


def test_evaluations_use_the_modules_verifier(tmp_path):
    module = ContextualBudgets(Quotient(), verifier=LirpaVerifier(), epsilon=0.01)
    search = LargestCertifiedBox(steps=2)
    metrics = measured(module, CertifiedEvaluation(), CertifiedVolume(search, num_samples=2), default_root_dir=tmp_path)
    assert metrics["test/certified_accuracy/linf_0.01"] <= metrics["test/accuracy/clean"]
    assert metrics["test/certified_volume/samples"] == 2
    other = CertifiedVolume(LargestCertifiedBox(FeedForwardVerifier("ibp"), steps=2), num_samples=2)
    with pytest.raises(SettingError, match=r"CertifiedVolume.search.init_args.verifier: got 'FeedForwardVerifier'"):
        measured(module, other)


def loaders(x, y):
    return {
        "train_dataloaders": DataLoader(TensorDataset(x, y), 8),
        "val_dataloaders": DataLoader(TensorDataset(x, y), 8),
    }


@pytest.mark.parametrize("plain", [True, False])
def test_a_verifier_that_cannot_bound_the_network_is_found_before_training(plain):
    module = StandardTraining(Quotient(), epsilon=0.05)
    before = copy.deepcopy(module.state_dict())
    x, y = images()
    data = loaders(x[:16], y[:16]) if plain else {"datamodule": Digits()}
    trainer = trainer_with(
        CertifiedEvaluation(FeedForwardVerifier(), every_n_epochs=5), max_epochs=5, num_sanity_val_steps=0
    )
    message = r"^CertifiedEvaluation.verifier: got 'FeedForwardVerifier'; .*set the verifier to robust.bounds.LirpaV"
    with pytest.raises(SettingError, match=message):
        trainer.fit(module, **data)
    assert all(torch.equal(weight, before[name]) for name, weight in module.state_dict().items())


def test_a_norm_without_a_ball_of_the_module_needs_a_radius():
    module = StandardTraining(DMSmall(), epsilon=0.05)
    evaluation = AdversarialEvaluation({"mine": AttackCase(PGD(2), norm="l2")})
    with pytest.raises(
        SettingError, match=r"AdversarialEvaluation.attacks.mine.epsilon: got None; give a radius: .*l2"
    ):
        trainer_with(evaluation, max_epochs=1).fit(module, datamodule=Digits())
    module = ContextualBudgets(DMSmall(), BudgetGenerator(), epsilon=0.05)
    seen = []

    def noting(network, threat_model, x, y):
        seen.append(threat_model)
        return x

    measured(module, AdversarialEvaluation({"mine": AttackCase(noting, norm="linf")}), limit_test_batches=1)
    assert [type(each) for each in seen] == [LinfBall]
    assert seen[0].epsilon == 0.05


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("norm", {"norm": "linf", "threat_model": LinfBall(0.1)}),
        ("epsilon", {"epsilon": 0.1}),
        ("epsilon", {"epsilon": 1.5, "norm": "linf"}),
        ("norm", {"norm": "l7", "epsilon": 0.5}),
    ],
)
def test_wrong_cases(setting, value):
    with pytest.raises(SettingError, match=f"{setting}: got"):
        AttackCase(PGD(2), **value)
