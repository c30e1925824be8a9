"""Two processes give what one gives, for each method."""

import pytest
import torch
from pytorch_lightning import Callback

from robust.networks import injections
from tests import score_methods
from tests.attacked_methods import METHODS, MULTI_NORM, STOCHASTIC, attacked, multi_norm
from tests.testers import ROOT, assert_processes_agree, start_two_processes

TINY = [
    f"--config={ROOT / 'configs' / 'quickstart.yaml'}",
    "--data.batch_size=16",
    "--data.eval_batch_size=64",
    "--epsilon_schedule.start_epoch=2",
    "--epsilon_schedule.length=1",
    "--trainer.max_epochs=3",
    "--trainer.limit_train_batches=8",
    "--trainer.callbacks=[{class_path: CertifiedEvaluation, init_args: {every_n_epochs: 1, pgd_steps: 0}}]",
    "--trainer.callbacks+=BudgetImages",
]
SGD = [
    "--model.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.05, momentum: 0.9}}",
    "--model.generator_optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.05, momentum: 0.9}}",
]
# |W| in IBP has a kink at W = 0: where rounding gives a weight opposite signs in the two runs, the gradients differ,
# and Adam steps by its learning rate however small they are. Small steps keep that within the tolerance.
ADAM = [
    "--model.optimizer={class_path: torch.optim.Adam, init_args: {lr: 0.0001, eps: 1e-6}}",
    "--model.generator_optimizer={class_path: torch.optim.Adam, init_args: {lr: 0.0001, eps: 1e-6}}",
]
UNIFORM = ["--model.generator=null"]


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [(SGD, 1e-6), (ADAM, 1e-4), ([*SGD, *UNIFORM], 1e-6)],
    ids=["learned-sgd", "learned-adam", "uniform-sgd"],
)
def test_contextual_budgets(settings, tolerance, tmp_path):
    assert_processes_agree([*TINY, *settings], tmp_path, tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_attack(method, tmp_path):
    # in float64, for the sign of a gradient may be a matter of rounding
    settings = [*attacked(method), "--trainer.precision=64-true"]
    settings += ["--trainer.callbacks+=tests.attacked_methods.FixedNoise"] if method in STOCHASTIC else []
    assert_processes_agree(settings, tmp_path, 1e-9)


class NoteNoise(Callback):
    """Writes what a process drew in its first place of noise, with the epochs, and its scales at the end."""

    def __init__(self, folder: str) -> None:
        self.folder, self.drawn = folder, []

    def on_train_start(self, trainer, pl_module):
        place = injections(pl_module)[0]
        draw = place.draw
        place.draw = lambda like: self.drawn.append((trainer.current_epoch, draw(like))) or self.drawn[-1][1]

    def on_train_end(self, trainer, pl_module):
        notes = {"drawn": self.drawn, "scales": [place.theta.detach() for place in injections(pl_module)]}
        torch.save(notes, f"{self.folder}/{trainer.global_rank}.pt")


def test_noise_differs_between_processes_and_scales_do_not(tmp_path):
    note = ["--trainer.callbacks+=tests.test_processes.NoteNoise", f"--trainer.callbacks.folder={tmp_path}"]
    start_two_processes("fit", [*attacked("learn2perturb"), *note, "--test_after_fit=false"], tmp_path)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert {epoch for epoch, _ in one["drawn"]} == {1, 2}  # without noise in the first epoch
    pairs = list(zip(one["drawn"], other["drawn"], strict=True))
    assert len(pairs) > 8
    assert all(not torch.equal(mine, theirs) for (_, mine), (_, theirs) in pairs)
    for mine, theirs in zip(one["scales"], other["scales"], strict=True):
        assert torch.equal(mine, theirs)
        assert (mine != 0.25).all()


@pytest.mark.parametrize(
    "method", [method if method == "mng_ac" else pytest.param(method, marks=pytest.mark.slow) for method in MULTI_NORM]
)
def test_multi_norm_methods(method, tmp_path):
    assert_processes_agree([*multi_norm(method), "--trainer.precision=64-true"], tmp_path, 1e-9)


@pytest.mark.parametrize("method", score_methods.METHODS)
def test_methods_of_the_robustness_framework(method, tmp_path):
    settings = [*score_methods.small(method, tmp_path, chance=False), "--trainer.precision=64-true"]
    assert_processes_agree(settings, tmp_path, 1e-9)
