"""A run that is killed and resumed ends like an uninterrupted run."""

import pytest
import torch

from lightning_modules import ContextualBudgets
from tests import score_methods
from tests.attacked_methods import METHODS, MULTI_NORM, attacked, multi_norm
from tests.testers import ROOT, WHERE, assert_resume_is_identical

TINY = [
    f"--config={ROOT / 'configs' / 'quickstart.yaml'}",
    "--test_after_fit=false",
    "--data.batch_size=8",
    "--epsilon_schedule.start_epoch=2",
    "--epsilon_schedule.length=2",
    "--trainer.max_epochs=4",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--data.eval_batch_size=32",
    "--trainer.callbacks=[{class_path: CertifiedEvaluation, init_args: {every_n_epochs: 1, pgd_steps: 0}}]",
    "--model.lr_scheduler=torch.optim.lr_scheduler.ExponentialLR",
    "--model.lr_scheduler.gamma=0.5",
]


class NoisyBudgets(ContextualBudgets):
    """A method with random draws in its step."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        super().training_step(((x + 0.1 * torch.rand_like(x)).clamp(max=1), y), batch_idx)


def test_contextual_budgets_with_random_draws(tmp_path):
    method = f"--model.class_path={__name__}.NoisyBudgets"
    schedule = "--model.generator_lr_scheduler={class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 3}}"
    the_range = "--model.alpha_low_start=0.1"
    assert_resume_is_identical([*TINY, method, schedule, the_range], tmp_path, batches_per_epoch=2)


@pytest.mark.slow  # a part of what the test above does
def test_uniform_budgets(tmp_path):
    assert_resume_is_identical([*TINY, "--model.generator=null"], tmp_path, batches_per_epoch=2)


# from the middle of an epoch, with workers and another seed; from everywhere it takes twice as long
MIDDLE = pytest.param(("middle",), id="middle")
EVERYWHERE = pytest.param(WHERE, id="everywhere", marks=pytest.mark.slow)


# Learn2Perturb, below, in each of its phases
@pytest.mark.thorough_but("weighted_minimax-middle")
@pytest.mark.parametrize("where", [MIDDLE, EVERYWHERE])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "learn2perturb"])
def test_methods_that_attack(method, where, tmp_path):
    schedule = ["--model.lr_scheduler=torch.optim.lr_scheduler.ExponentialLR", "--model.lr_scheduler.gamma=0.5"]
    settings = [*attacked(method), *schedule, "--data.batch_size=8", "--test_after_fit=false"]
    few = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.max_epochs=4"]
    assert_resume_is_identical([*settings, *few], tmp_path, batches_per_epoch=2, where=where)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("noise_delay", "adversarial_delay"),
    [pytest.param(9, 9, marks=pytest.mark.slow), pytest.param(2, 3, marks=pytest.mark.slow), (1, 2)],
    ids=["noise off", "noise on", "adversarial on"],
)
def test_learn2perturb_in_each_phase(noise_delay, adversarial_delay, tmp_path):
    """Killed between epochs 1 and 2 and in the middle of epoch 2; the second run passes through all phases."""
    decay = "{class_path: torch.optim.lr_scheduler.ExponentialLR, init_args: {gamma: 0.5}}"
    settings = [*attacked("learn2perturb"), f"--model.lr_scheduler={decay}", f"--model.theta_lr_scheduler={decay}"]
    settings += [f"--model.noise_delay={noise_delay}", f"--model.adversarial_delay={adversarial_delay}"]
    settings += ["--model.attack=robust.attacks.PGD", "--model.attack.steps=2", "--test_after_fit=false"]
    few = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.max_epochs=4"]
    assert_resume_is_identical([*settings, *few], tmp_path, batches_per_epoch=2)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "method", [method if method == "mng_ac" else pytest.param(method, marks=pytest.mark.slow) for method in MULTI_NORM]
)
def test_multi_norm_methods(method, tmp_path):
    random = ["--model.generator=robust.networks.NoiseGenerator"] if method == "mng_ac" else []
    settings = [*multi_norm(method, "robust.attacks.PGD"), *random, "--test_after_fit=false"]
    few = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    assert_resume_is_identical([*settings, *few], tmp_path, batches_per_epoch=2)


@pytest.mark.thorough
@pytest.mark.parametrize("where", [MIDDLE, EVERYWHERE])
@pytest.mark.parametrize("method", score_methods.METHODS)
def test_methods_of_the_robustness_framework(method, where, tmp_path):
    schedule = ["--model.lr_scheduler=torch.optim.lr_scheduler.ExponentialLR", "--model.lr_scheduler.gamma=0.5"]
    few = ["--data.batch_size=8", "--test_after_fit=false", "--trainer.limit_val_batches=1"]
    few.append("--trainer.limit_train_batches=2")
    settings = [*score_methods.small(method, tmp_path), *schedule, *few]
    assert_resume_is_identical(settings, tmp_path, batches_per_epoch=2, where=where)
