"""What the methods stand on: a module that is trained, and the classifiers among them."""

from lightning_modules.base.checks import check_precision, run_blank
from lightning_modules.base.manifold_classifier import ManifoldClassifier
from lightning_modules.base.robust_classifier import RobustClassifier
from lightning_modules.base.training_module import Batch, TrainingModule

__all__ = ["Batch", "ManifoldClassifier", "RobustClassifier", "TrainingModule", "check_precision", "run_blank"]
