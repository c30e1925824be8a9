"""Base classes of all methods, and of families of methods."""

from lightning_modules.base.attacked_classifier import AttackedClassifier
from lightning_modules.base.blank_runs import blank_images, check_repeatable, run_blank
from lightning_modules.base.checks import check_precision
from lightning_modules.base.descent import OptimizerSpec
from lightning_modules.base.generator_classifier import GeneratorClassifier
from lightning_modules.base.loaders import num_images
from lightning_modules.base.manifold_classifier import ManifoldClassifier
from lightning_modules.base.multi_norm_classifier import MultiNormClassifier, attacks_by_norm
from lightning_modules.base.numbering import index_spacing
from lightning_modules.base.rates import monitored_names
from lightning_modules.base.robust_classifier import RobustClassifier
from lightning_modules.base.synchronised import statistics_of
from lightning_modules.base.training_module import Batch, TrainingModule

__all__ = [
    "AttackedClassifier",
    "Batch",
    "GeneratorClassifier",
    "ManifoldClassifier",
    "MultiNormClassifier",
    "OptimizerSpec",
    "RobustClassifier",
    "TrainingModule",
    "attacks_by_norm",
    "blank_images",
    "check_precision",
    "check_repeatable",
    "index_spacing",
    "monitored_names",
    "num_images",
    "run_blank",
    "statistics_of",
]
