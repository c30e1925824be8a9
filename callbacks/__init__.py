"""What happens around training: schedules, evaluations, pictures and the record of a run."""

from callbacks.accuracy_curve import AccuracyCurve
from callbacks.adversarial_evaluation import AdversarialEvaluation, AttackCase
from callbacks.budget_images import BudgetImages
from callbacks.budget_regions import BudgetRegions
from callbacks.certified_evaluation import CertifiedEvaluation
from callbacks.certified_volume import CertifiedVolume
from callbacks.checkpoint import Checkpoint
from callbacks.decision_boundary import DecisionBoundary
from callbacks.epsilon_scheduler import EpsilonScheduler
from callbacks.gradient_masking_checks import GradientMaskingChecks
from callbacks.group_accuracy import GroupAccuracy
from callbacks.interruption import InterruptedRunError, Interruption
from callbacks.monitors import Monitors
from callbacks.non_uniform_evaluation import NonUniformEvaluation
from callbacks.peers import Peers, watch_launcher
from callbacks.predictions import Predictions
from callbacks.results import Results
from callbacks.robustness_score import RobustnessScore
from callbacks.run_config import RunConfig
from callbacks.sampled_robustness import SampledRobustness

__all__ = [
    "AccuracyCurve",
    "AdversarialEvaluation",
    "AttackCase",
    "BudgetImages",
    "BudgetRegions",
    "CertifiedEvaluation",
    "CertifiedVolume",
    "Checkpoint",
    "DecisionBoundary",
    "EpsilonScheduler",
    "GradientMaskingChecks",
    "GroupAccuracy",
    "InterruptedRunError",
    "Interruption",
    "Monitors",
    "NonUniformEvaluation",
    "Peers",
    "Predictions",
    "Results",
    "RobustnessScore",
    "RunConfig",
    "SampledRobustness",
    "watch_launcher",
]
