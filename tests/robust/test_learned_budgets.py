"""Learned budgets from another model's checkpoint."""

import pytest
import torch
from torch import nn

from callbacks import CertifiedEvaluation, CertifiedVolume
from datamodules import Digits
from lightning_modules import AdversarialTraining, ContextualBudgets
from robust.bounds import FeedForwardVerifier
from robust.budgets import LearnedBudgets
from robust.errors import SettingError
from robust.networks import BudgetGenerator, DMSmall
from tests.callbacks.trained import trainer_with


@pytest.fixture
def learned():
    torch.manual_seed(0)
    return ContextualBudgets(DMSmall(), BudgetGenerator(), epsilon=0.002, alpha_low=0.25, alpha_high=3.0)


@pytest.fixture
def checkpoint(learned, tmp_path):
    trainer = trainer_with(max_steps=0)
    trainer.fit(learned, datamodule=Digits())
    trainer.save_checkpoint(tmp_path / "learned.ckpt")
    return str(tmp_path / "learned.ckpt")


def test_another_models_budgets_are_those_of_its_generator(learned, checkpoint):
    torch.manual_seed(1)
    uniform = ContextualBudgets(DMSmall(), epsilon=0.002)
    elsewhere = {"theirs": LearnedBudgets(BudgetGenerator(), checkpoint)}  # its range is the checkpoint's
    callback = CertifiedEvaluation(epsilons=[0.002, 0.004], budgets=elsewhere, pgd_steps=2)
    data = Digits(eval_batch_size=100)
    metrics = trainer_with(callback).test(uniform, data, verbose=False)[0]
    x, y = data.images("test")[torch.arange(299)]
    learned.eval()
    for epsilon in (0.002, 0.004):
        suffix = f"_{epsilon}"
        box = learned.threat_model(x, epsilon)
        verified = (FeedForwardVerifier().margins(uniform.classifier, box.interval(x), y) > 0).all(1)
        expected = verified.double().mean().item()
        assert metrics[f"test/certified_accuracy/theirs{suffix}"] == pytest.approx(expected, abs=1e-6)
        assert metrics[f"test/accuracy/pgd_2/theirs{suffix}"] >= expected - 1e-6
        assert metrics[f"test/budget/theirs{suffix}/max"] == pytest.approx(box.budgets.max().item(), rel=1e-5)
        assert metrics[f"test/budget/theirs{suffix}/log_volume_error"] < 1e-5
    assert not any("linf" in name for name in metrics), "the model's own threat models are left to its own callback"


@pytest.mark.parametrize("evaluation", [CertifiedEvaluation, CertifiedVolume])
def test_a_radius_in_l2_is_no_size_of_budgets(evaluation, checkpoint):
    """Regression: a radius of 1.5 in l2 became budgets of 1 for each pixel, without a word."""
    elsewhere = {"budgets": {"theirs": LearnedBudgets(BudgetGenerator(), checkpoint)}}
    callback = evaluation(**(elsewhere if evaluation is CertifiedEvaluation else {}))
    module = AdversarialTraining(DMSmall(), norm="l2", epsilon=1.5)
    message = f"{evaluation.__name__}.epsilons: got None; the model's epsilon 1.5 is a radius in l2; give sizes of"
    with pytest.raises(SettingError, match=message):
        trainer_with(callback).test(module, Digits(eval_batch_size=100), verbose=False)
    with pytest.raises(SettingError, match=r"^epsilon: got 1\.5; give the size of budgets per pixel"):
        elsewhere["budgets"]["theirs"](torch.rand(1, 1, 28, 28), 1.5)


def test_the_generator_is_frozen(checkpoint):
    generator = LearnedBudgets(BudgetGenerator(), checkpoint, alpha_low=0.25, alpha_high=3.0).generator
    assert not generator.training
    assert not any(parameter.requires_grad for parameter in generator.parameters())


def test_wrong_checkpoints(learned, checkpoint, tmp_path):
    for name, value, trained in (("alpha_low", 0.5, 0.25), ("alpha_high", 2.0, 3.0)):
        with pytest.raises(SettingError, match=rf"^{name}: got {value}; .* with {trained}; leave it out"):
            LearnedBudgets(BudgetGenerator(), checkpoint, **{name: value})
    absent = str(tmp_path / "absent.ckpt")
    with pytest.raises(SettingError, match=r"^checkpoint: got '.*absent.ckpt'; no such file; give a"):
        LearnedBudgets(BudgetGenerator(), absent)
    with pytest.raises(SettingError, match=r"^checkpoint: .*configure the same generator"):
        LearnedBudgets(BudgetGenerator((1, 32, 32)), checkpoint)
    content = torch.load(checkpoint, weights_only=True)
    early = {name: value for name, value in content.items() if name != "budget_range"}
    torch.save(early, tmp_path / "early.ckpt")
    assert LearnedBudgets(BudgetGenerator(), str(tmp_path / "early.ckpt"), 0.25, 3.0).alpha_low == 0.25
    with pytest.raises(SettingError, match=r"^alpha_low: got None; .*early.ckpt does not say; give that"):
        LearnedBudgets(BudgetGenerator(), str(tmp_path / "early.ckpt"))
    content["state_dict"] = {name: w for name, w in content["state_dict"].items() if name.startswith("classifier")}
    torch.save(content, tmp_path / "uniform.ckpt")
    with pytest.raises(SettingError, match=r"^checkpoint: .*it holds no generator"):
        LearnedBudgets(BudgetGenerator(), str(tmp_path / "uniform.ckpt"))
    (tmp_path / "text.ckpt").write_text("text")
    with pytest.raises(SettingError, match=r"^checkpoint: .*its end is missing, or it is of another kind"):
        LearnedBudgets(BudgetGenerator(), str(tmp_path / "text.ckpt"))


def test_generators_of_other_images_and_wrong_ranges():
    for generator in (BudgetGenerator((1, 8, 8)), nn.Flatten(), nn.Linear(5, 5)):
        with pytest.raises(SettingError, match=r"^generator: got .*data's images"):
            LearnedBudgets(generator)(torch.rand(2, 1, 28, 28), 0.1)
    with pytest.raises(SettingError, match=r"^alpha_low: got 1.5"):
        LearnedBudgets(BudgetGenerator(), alpha_low=1.5)
    with pytest.raises(SettingError, match=r"^alpha_high: got 0.5"):
        LearnedBudgets(BudgetGenerator(), alpha_high=0.5)
    with pytest.raises(SettingError, match=r"CertifiedEvaluation.budgets: got \{\}"):
        CertifiedEvaluation(budgets={})
