"""Verified errors equal a direct computation, and the effects of the settings."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from callbacks import BudgetImages, CertifiedEvaluation
from callbacks._stages import StageCallback
from callbacks.pictures.budget_images import draw_budgets
from datamodules import Digits
from lightning_modules import ContextualBudgets
from robust.bounds import FeedForwardVerifier, LirpaVerifier, certify
from robust.errors import ContradictionError, SettingError
from robust.networks import BudgetGenerator, DMSmall
from robust.threat_models import LinfBall, PixelBox, ball
from tests.lirpa_cases import needs_lirpa


@pytest.fixture
def module():
    torch.manual_seed(0)
    return ContextualBudgets(DMSmall(), BudgetGenerator(), epsilon=0.002)


def trainer_with(*callbacks, **settings):
    return pl.Trainer(
        accelerator="cpu", callbacks=list(callbacks), enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **({"logger": False} | settings)
    )  # fmt: skip


def test_accuracies_equal_a_direct_computation_for_each_size_and_threat_model(module):
    data = Digits(eval_batch_size=64)
    metrics = trainer_with(CertifiedEvaluation(epsilons=[0.002, 0.004])).test(module, data, verbose=False)[0]
    x, y = data.images("test")[torch.arange(299)]
    module.eval()
    for epsilon in (0.002, 0.004):
        for name, threat_model in module.threat_models(x, epsilon).items():
            margins = FeedForwardVerifier().margins(module.classifier, threat_model.interval(x), y)
            expected = (margins > 0).all(1).double().mean().item()
            full_name = f"{name}_{epsilon}" if name == "own_budgets" else name
            assert metrics[f"test/certified_accuracy/{full_name}"] == pytest.approx(expected, abs=1e-6)
            assert (f"test/certified_accuracy/{full_name}/common_map" in metrics) is (name == "own_budgets")
    assert metrics["test/accuracy/clean"] == pytest.approx((module(x).argmax(1) == y).double().mean().item(), abs=1e-6)
    assert metrics["test/certified_accuracy/linf_0.004"] < metrics["test/accuracy/clean"]


@pytest.mark.parametrize("stage", ["test", "val"])
def test_the_common_map_equals_a_direct_computation(module, stage):
    """Budgets that follow the image: its mean over the images has other certificates."""
    data = Digits(eval_batch_size=64)
    module.epsilon, module.generator = 0.005, BudgetGenerator()
    module.generator.layers[-1].weight.data *= 100
    run = getattr(trainer_with(CertifiedEvaluation(pgd_steps=0)), {"test": "test", "val": "validate"}[stage])
    metrics = run(module, data, verbose=False)[0]
    x, y = data.images(stage)[torch.arange(299 if stage == "test" else 200)]
    with torch.no_grad():
        logs = module.threat_models(x, 0.005)["own_budgets"].budgets.double().log()
        common = logs.mean(0, keepdim=True)
        margins = FeedForwardVerifier().margins(module.classifier, PixelBox(common.exp().float()).interval(x), y)
    assert common.mean().exp().item() == pytest.approx(0.005, rel=1e-5), "the volume"
    name = f"{stage}/certified_accuracy/own_budgets"
    expected = (margins > 0).all(1).double().mean().item()
    assert metrics[f"{name}/common_map"] == pytest.approx(expected, abs=1e-6)
    fraction = metrics[f"{stage}/budget/own_budgets/common_variance"]
    assert fraction == pytest.approx((common.var(correction=0) / logs.var(correction=0)).item(), rel=1e-4)
    assert 0.05 < fraction < 0.95


def test_a_second_evaluation_forgets_the_examples_of_the_first(module):
    trainer = trainer_with(CertifiedEvaluation(pgd_steps=0))
    name = "certified_accuracy/own_budgets/common_map"
    first, _ = (getattr(trainer, run)(module, Digits(), verbose=False)[0] for run in ("test", "validate"))
    again = trainer.test(module, Digits(), verbose=False)[0]
    assert again[f"test/{name}"] == first[f"test/{name}"]


def test_validation_is_certified_every_n_epochs_and_at_the_end_on_at_most_m_batches(module):
    seen = []

    class Counting(FeedForwardVerifier):
        def margins(self, network, box, y):
            seen.append((trainer.current_epoch, len(y)))
            return super().margins(network, box, y)

    module.generator = None
    callback = CertifiedEvaluation(Counting(), every_n_epochs=2, max_batches=3)
    trainer = trainer_with(callback, max_epochs=5, limit_train_batches=1, num_sanity_val_steps=2)
    trainer.fit(module, datamodule=Digits(eval_batch_size=16))
    assert seen == [(0, 1)] + [(epoch, 16) for epoch in (1, 3, 4) for _ in range(3)], "first on a blank image"


@pytest.mark.parametrize(("every", "check", "last", "warned"), [(3, 2, 5, True), (2, 3, 3, False), (2, 3, 4, True)])
def test_an_interval_that_no_validation_meets_is_warned_of(every, check, last, warned, recwarn):
    trainer = trainer_with(max_epochs=last, check_val_every_n_epoch=check)
    StageCallback.on_train_start(CertifiedEvaluation(every_n_epochs=every), trainer, None)
    messages = [str(each.message) for each in recwarn if "it never runs in this training" in str(each.message)]
    start = f"CertifiedEvaluation.every_n_epochs: got {every}; with trainer.check_val_every_n_epoch {check} and "
    assert [message.startswith(start) for message in messages] == [True] * warned


@pytest.mark.parametrize(("steps", "runs"), [(6, True), (5, False)])
def test_it_runs_in_the_last_epoch_by_steps(module, steps, runs, recwarn):
    """Regression: without max_epochs it never ran, and without a warning."""
    trainer = trainer_with(CertifiedEvaluation(every_n_epochs=5), max_epochs=-1, max_steps=steps, limit_train_batches=2)
    trainer.fit(module, datamodule=Digits(batch_size=16, eval_batch_size=16))
    assert any(name.startswith("val/certified_accuracy/") for name in trainer.callback_metrics) == runs
    warned = [str(each.message) for each in recwarn if "never runs in this training" in str(each.message)]
    after = (
        "trainer.max_steps 5 it never runs in this training; no validation is at its last step; end with a validation"
    )
    assert [after in message for message in warned] == [True] * (not runs)


@pytest.mark.thorough_but("settings0-True", "settings1-False")
@pytest.mark.parametrize(
    ("settings", "runs"),
    [
        ({"max_steps": 5, "val_check_interval": 2}, True),  # the last step is a validation
        ({"max_steps": 6, "val_check_interval": 2}, False),
        ({"max_steps": 3, "val_check_interval": 2}, False),
        ({"max_steps": 5, "val_check_interval": 2, "max_epochs": 2}, True),
        ({"max_steps": 4, "val_check_interval": 2, "max_epochs": 2}, False),
        ({"max_steps": 15, "val_check_interval": 2}, True),  # in the fifth epoch
        ({"max_steps": 13, "val_check_interval": 2}, False),
        ({"max_steps": 14, "val_check_interval": 2, "check_val_every_n_epoch": 2}, False),
    ],
)
def test_validations_inside_an_epoch_are_known(settings, runs, module, recwarn):
    """Regression: a warning said that it never runs."""
    trainer = trainer_with(
        CertifiedEvaluation(every_n_epochs=5), limit_train_batches=3, **{"max_epochs": -1} | settings
    )
    trainer.fit(module, datamodule=Digits(batch_size=16, eval_batch_size=16))
    assert any(name.startswith("val/certified_accuracy/") for name in trainer.callback_metrics) == runs
    assert any("never runs in this training" in str(each.message) for each in recwarn) != runs


def test_an_unsound_verifier_is_caught_by_the_attack(module):
    class Optimist(FeedForwardVerifier):
        def margins(self, network, box, y):
            return torch.ones(len(y), 9)

    with pytest.raises(ContradictionError, match=r"unsound bound: Optimist certified \d+ of 256 .* indices \d+, \d+, "):
        trainer_with(CertifiedEvaluation(Optimist(), pgd_steps=2)).test(module, Digits(), verbose=False)


@pytest.mark.parametrize(
    "setting",
    [{"epsilons": [0.0]}, {"epsilons": [0.1, 2.0]}, {"every_n_epochs": 0}, {"max_batches": 0}, {"pgd_steps": -1}],
)
def test_wrong_settings(setting):
    with pytest.raises(SettingError, match=f"CertifiedEvaluation.{next(iter(setting))}: got"):
        CertifiedEvaluation(**setting)


def test_pictures_are_drawn_in_validation_and_test(module, tmp_path):
    trainer = trainer_with(BudgetImages(count=3), max_epochs=1, limit_train_batches=1, default_root_dir=tmp_path)
    trainer.fit(module, datamodule=Digits())
    trainer.test(module, datamodule=Digits(), verbose=False)
    names = sorted(path.name for path in tmp_path.rglob("*.png"))
    assert names == ["test_own_budgets.png", "val_own_budgets_epoch001.png"]


def test_the_budgets_share_one_colour_scale_with_a_bar():
    budgets = torch.rand(3, 3, 8, 8)
    figure = draw_budgets(torch.rand(3, 3, 8, 8), budgets)
    drawn = [axis.images[0] for axis in figure.axes[3:6]]
    assert len({image.get_clim() for image in drawn}) == 1
    assert figure.axes[6].get_ylabel() == "epsilon"
    assert torch.allclose(
        torch.tensor(drawn[0].get_clim()), torch.stack([budgets.mean(1).min(), budgets.mean(1).max()])
    )


def test_white_adds_the_papers_row_of_images():
    budgets = 0.5 * torch.rand(2, 3, 8, 8)
    figure = draw_budgets(torch.rand(2, 3, 8, 8), budgets, white=0.25)
    for index, axis in enumerate(figure.axes[4:6]):
        expected = (budgets[index] / 0.25).clamp(max=1).permute(1, 2, 0)
        assert torch.allclose(torch.from_numpy(axis.images[0].get_array().data), expected)
    assert figure.axes[4].get_ylabel() == "/ 0.25"
    with pytest.raises(SettingError, match=r"BudgetImages.white: got 0"):
        BudgetImages(white=0.0)
    with pytest.raises(SettingError, match=r"BudgetImages.white_over_epsilon: got 2; leave out one"):
        BudgetImages(white=1.0, white_over_epsilon=2)


def test_a_uniform_threat_model_has_no_picture(tmp_path):
    module = ContextualBudgets(DMSmall())
    trainer_with(BudgetImages(), default_root_dir=tmp_path).test(module, Digits(), verbose=False)
    assert not list(tmp_path.rglob("*.png"))
    assert list(module.threat_models(torch.rand(1, 1, 28, 28), 0.4)) == ["linf_0.4"]
    assert isinstance(module.threat_models(torch.rand(1, 1, 28, 28), 0.4)["linf_0.4"], LinfBall)


def test_a_test_records_the_margins_of_some_images_and_verdicts_of_all(module):
    data, verifier = Digits(eval_batch_size=40), FeedForwardVerifier("tightest")
    recorded, metrics = {}, {}
    for count in (0, 100, 500):
        callback = CertifiedEvaluation(verifier, norm="linf", epsilons=[0.03], pgd_steps=0, margin_samples=count)
        metrics[count] = trainer_with(callback, limit_test_batches=1).test(module, data, verbose=False)[0]
        recorded[count] = callback.recorded.margins.get("test/certified_accuracy/linf_0.03")
    name = "test/certified_accuracy/linf_0.03"
    assert metrics[0][name] == metrics[100][name] == metrics[500][name]
    x, y = data.images("test")[torch.arange(40)]
    lowest = certify(verifier, module.classifier, LinfBall(0.03), x, y).margins.double()
    assert recorded[0] is None
    for count, step in ((100, 2), (500, 1)):
        expected = lowest[::step].quantile(torch.linspace(0, 1, 51, dtype=torch.float64))
        torch.testing.assert_close(torch.tensor(recorded[count], dtype=torch.float64), expected, rtol=1e-3, atol=1e-3)


def test_a_negative_number_of_margins_is_an_error():
    with pytest.raises(SettingError, match=r"margin_samples: got -1; give 0 for none, or a number of images"):
        CertifiedEvaluation(margin_samples=-1)


@pytest.mark.parametrize(("norm", "sizes"), [("l2", [0.02, 0.1, 2.0]), ("l1", [0.05, 0.2, 2.0])])
def test_balls_are_certified_under_the_name_of_their_norm(module, norm, sizes):
    data, settings = Digits(eval_batch_size=50), {"norm": norm, "epsilons": sizes}
    callback = CertifiedEvaluation(FeedForwardVerifier("tightest"), pgd_steps=3, **settings)
    x, y = data.images("test")[torch.arange(50)]
    optimizer = torch.optim.Adam(module.classifier.parameters(), 3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module.classifier(x), y).backward()
        optimizer.step()
    metrics = trainer_with(callback, limit_test_batches=1).test(module, data, verbose=False)[0]
    verifier, names = FeedForwardVerifier("tightest"), {name for name in metrics if "certified_accuracy" in name}
    assert names == {f"test/certified_accuracy/{norm}_{size:g}" for size in sizes}, "no learned budgets"
    certified = [metrics[f"test/certified_accuracy/{norm}_{size:g}"] for size in sizes]
    for size, accuracy in zip(sizes, certified, strict=True):
        expected = certify(verifier, module.classifier, ball(norm, size), x, y).certified.double().mean().item()
        assert accuracy == pytest.approx(expected, abs=1e-6)
        assert accuracy <= metrics[f"test/accuracy/pgd_3/{norm}_{size:g}"] <= metrics["test/accuracy/clean"]
    box = certify(verifier, module.classifier, LinfBall(sizes[1]), x, y).certified.double().mean().item()
    assert certified[0] > certified[1] > box, "a ball is a small part of its box"


@needs_lirpa
def test_a_verifier_of_boxes_refuses_a_ball(module):
    callback = CertifiedEvaluation(LirpaVerifier(), norm="l2")
    message = r"CertifiedEvaluation.verifier: got 'LirpaVerifier'; box: got 'l2 ball'; LirpaVerifier bounds boxes alone"
    with pytest.raises(SettingError, match=message):
        trainer_with(callback).test(module, Digits(), verbose=False)


def test_sizes_above_1_are_for_balls():
    with pytest.raises(SettingError, match=r"epsilons: got 2; .* above 1 with norm l2 or l1 only"):
        CertifiedEvaluation(norm="linf", epsilons=[2])


@pytest.mark.thorough
@pytest.mark.parametrize("decay", [0.5, 0.97])
def test_averages_of_weights_may_be_listed_before_it(decay):
    """Regression: at its end, where it bounds in the common map, it had other weights than in its batches."""

    def validated(*callbacks):
        torch.manual_seed(0)
        classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        generator = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Sigmoid())
        rates = {name: partial(SGD, lr=0.5) for name in ("optimizer", "generator_optimizer")}
        x = torch.rand(200, 1, 4, 4)
        loader = DataLoader(TensorDataset(x, (x.flatten(1).sum(1) > 8).long()), batch_size=40)
        trainer = trainer_with(*callbacks, max_epochs=4, num_sanity_val_steps=0)
        trainer.fit(ContextualBudgets(classifier, generator, epsilon=0.02, **rates), loader, loader)
        return trainer.callback_metrics

    last = validated(CertifiedEvaluation(), EMAWeightAveraging(decay=decay))
    assert last["val/certified_accuracy/own_budgets/common_map"] > 0.3
    assert validated(EMAWeightAveraging(decay=decay), CertifiedEvaluation()) == last
