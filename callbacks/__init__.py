"""Callbacks: schedules, evaluations, pictures, checkpoints and the record of a run."""

from callbacks.checkpoint import Checkpoint
from callbacks.epsilon_scheduler import EpsilonScheduler
from callbacks.evaluation.accuracy_curve import AccuracyCurve
from callbacks.evaluation.adversarial_evaluation import AdversarialEvaluation, AttackCase
from callbacks.evaluation.budget_regions import BudgetRegions
from callbacks.evaluation.certified_evaluation import CertifiedEvaluation
from callbacks.evaluation.certified_volume import CertifiedVolume
from callbacks.evaluation.corrupted_accuracy import CorruptedAccuracy
from callbacks.evaluation.gradient_masking_checks import GradientMaskingChecks
from callbacks.evaluation.group_accuracy import GroupAccuracy
from callbacks.evaluation.resumable import ResumableTest
from callbacks.evaluation.robustness_score import RobustnessScore
from callbacks.evaluation.sampled_robustness import SampledRobustness
from callbacks.evaluation.weighted_minimax import WeightedMinimaxEvaluation
from callbacks.interruption import InterruptedRunError, Interruption
from callbacks.monitors import Monitors
from callbacks.peers import Peers, watch_launcher
from callbacks.pictures.adversarial_examples import AdversarialExamples
from callbacks.pictures.budget_images import BudgetImages
from callbacks.pictures.decision_boundary import DecisionBoundary
from callbacks.predictions import Predictions
from callbacks.progress import Progress
from callbacks.results import Results
from callbacks.run_config import RunConfig
from callbacks.tensorboard import TensorBoard
from callbacks.test_after_fit import TestAfterFit

__all__ = [
    "AccuracyCurve",
    "AdversarialEvaluation",
    "AdversarialExamples",
    "AttackCase",
    "BudgetImages",
    "BudgetRegions",
    "CertifiedEvaluation",
    "CertifiedVolume",
    "Checkpoint",
    "CorruptedAccuracy",
    "DecisionBoundary",
    "EpsilonScheduler",
    "GradientMaskingChecks",
    "GroupAccuracy",
    "InterruptedRunError",
    "Interruption",
    "Monitors",
    "Peers",
    "Predictions",
    "Progress",
    "Results",
    "ResumableTest",
    "RobustnessScore",
    "RunConfig",
    "SampledRobustness",
    "TensorBoard",
    "TestAfterFit",
    "WeightedMinimaxEvaluation",
    "watch_launcher",
]
