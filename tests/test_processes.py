"""Two processes give what one gives, for each method."""

import pytest

from tests.attacked_methods import ATTACKED, MULTI_NORM, attacked, multi_norm
from tests.testers import ROOT, assert_processes_agree

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


@pytest.mark.parametrize("method", ATTACKED)
def test_methods_that_attack(method, tmp_path):
    # in float64, for the sign of a gradient may be a matter of rounding
    assert_processes_agree([*attacked(method), "--trainer.precision=64-true"], tmp_path, 1e-9)


@pytest.mark.parametrize(
    "method", [method if method == "mng_ac" else pytest.param(method, marks=pytest.mark.slow) for method in MULTI_NORM]
)
def test_multi_norm_methods(method, tmp_path):
    assert_processes_agree([*multi_norm(method), "--trainer.precision=64-true"], tmp_path, 1e-9)
