"""No two metrics of a run have the same name: Lightning would average them."""

import pytest
from torchmetrics import SumMetric

from callbacks import (
    AccuracyCurve,
    AdversarialEvaluation,
    AttackCase,
    CertifiedEvaluation,
    RobustnessScore,
    SampledRobustness,
    WeightedMinimaxEvaluation,
)
from callbacks.evaluation.base import Evaluation
from datamodules import Digits
from robust.attacks import PGD
from robust.errors import SettingError
from robust.networks import Noisy
from robust.scores import R2, UniformBall
from tests.callbacks.trained import Plain, small, trainer_with


class LogsMine(Evaluation):
    """Logs a metric under another name than that of its sum."""

    def evaluate(self, module, x, y):
        self.update(type(self).__name__, SumMetric, y)

    def compute(self, module):
        return {"mine": next(iter(self.metrics.values())).compute()}


class AnotherClass(LogsMine):
    """Logs the same name."""

    def namespaces(self, module):
        return {"another"}


def run_test(network, *callbacks):
    module = Plain(network, epsilon=0.1)
    trainer_with(*callbacks, limit_test_batches=1).test(module, Digits(eval_batch_size=8), verbose=False)


def test_two_evaluations_that_log_one_name_are_refused():
    with pytest.raises(SettingError, match=r"trainer.callbacks: got 'mine'; .* both log it; run one at a time"):
        run_test(small(), LogsMine(), AnotherClass())


def test_r2_by_attacks_and_r2_by_samples_have_two_names():
    sampled = {"score": R2(UniformBall(5)), "epsilons": 5}
    with pytest.raises(SettingError, match=r"SampledRobustness.name: got 'r2'; RobustnessScore logs it, too"):
        run_test(small(), RobustnessScore(), SampledRobustness(**sampled))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CertifiedEvaluation(epsilons=[0.01, 0.01]), r"CertifiedEvaluation.epsilons: got \[0.01, 0.01\]"),
        (lambda: AccuracyCurve({"pgd": PGD(2)}, [8 / 255, 0.0313725]), "AccuracyCurve.epsilons: got .*six digits"),
        (lambda: WeightedMinimaxEvaluation(1, 0.1, alphas=(1000.0,)), "alphas: got 1000.0; .* 0 to 300"),
    ],
)
def test_settings_whose_metrics_would_have_one_name_or_overflow_are_refused(build, message):
    with pytest.raises(SettingError, match=message):
        build()


def test_a_case_may_not_be_called_like_the_variant_of_another_one():
    cases = {"pgd": AttackCase(PGD(1)), "pgd_eot": AttackCase(PGD(2, num_samples=3))}
    with pytest.raises(SettingError, match=r"AdversarialEvaluation.attacks: got 'pgd_eot/linf_0.1'; two cases"):
        run_test(Noisy(small(), ["0"], (1, 28, 28)), AdversarialEvaluation(cases))
