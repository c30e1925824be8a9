"""Evaluations compute in full precision, as certificates do, whatever precision the user has set for the rest."""

import pytest
import torch
from pytorch_lightning import Callback
from torch.utils.data import DataLoader, TensorDataset

from callbacks import (
    AccuracyCurve,
    AdversarialEvaluation,
    AttackCase,
    CertifiedEvaluation,
    CertifiedVolume,
    GradientMaskingChecks,
    RobustnessScore,
    SampledRobustness,
    WeightedMinimaxEvaluation,
)
from robust.attacks import PGD, LinearizedBoundary
from robust.bounds import LargestCertifiedBox
from robust.scores import R3, UniformBall
from tests.callbacks.trained import images, stored, trainer_with

EVALUATIONS = [
    AccuracyCurve({"pgd": PGD(1)}, [0.05]),
    AdversarialEvaluation({"pgd": AttackCase(PGD(1))}),
    CertifiedEvaluation(),
    CertifiedVolume(LargestCertifiedBox(steps=1), num_samples=2),
    GradientMaskingChecks({"linf": 0.05}, steps=1),
    RobustnessScore({"bg": LinearizedBoundary()}),
    SampledRobustness(R3(UniformBall(2)), epsilons=1),
    WeightedMinimaxEvaluation(1, 0.03, 0.05),
]


def precision():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


class Noting(Callback):
    """Notes the precision of each forward pass after the test's step."""

    def __init__(self):
        self.noted = set()

    def on_test_batch_end(self, trainer, module, *_):
        module.classifier.register_forward_pre_hook(lambda *_: self.noted.add(precision()))


@pytest.mark.filterwarnings("ignore:gradient masking", "ignore:The '?test_dataloader")
@pytest.mark.parametrize("evaluation", EVALUATIONS, ids=lambda evaluation: type(evaluation).__name__)
def test_an_evaluation_computes_in_full_precision(evaluation, tmp_path):
    x, y = images()
    loader, noting, before = DataLoader(TensorDataset(x[:4], y[:4]), batch_size=4), Noting(), precision()
    torch.set_float32_matmul_precision("high")
    try:
        trainer = trainer_with(noting, evaluation, default_root_dir=tmp_path)
        trainer.test(stored(), dataloaders=loader, verbose=False)
        assert precision()[0] == "high"
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert noting.noted == {("highest", False)}


def test_clean_accuracy_is_of_full_precision_too():
    """Regression: under bf16-mixed it was of another network than certified and attacked accuracies."""
    module, seen = stored(), set()
    module.classifier.register_forward_hook(lambda network, images, logits: seen.add(logits.dtype))
    x, y = images()
    trainer = trainer_with(precision="bf16-mixed", limit_test_batches=1)
    trainer.test(module, DataLoader(TensorDataset(x, y), batch_size=4), verbose=False)
    assert seen == {torch.float32}
