"""Training methods as LightningModules, one file each."""

from lightning_modules.adversarial_bnn import AdversarialBNN
from lightning_modules.adversarial_training import AdversarialTraining
from lightning_modules.base import AttackedClassifier, MultiNormClassifier, RobustClassifier, TrainingModule
from lightning_modules.contextual_budgets import ContextualBudgets
from lightning_modules.cross_lipschitz import CrossLipschitz
from lightning_modules.free_adversarial_training import FreeAdversarialTraining
from lightning_modules.instance_adaptive_training import InstanceAdaptiveTraining
from lightning_modules.learn2perturb import Learn2Perturb
from lightning_modules.mixed_adversarial_training import MixedAdversarialTraining
from lightning_modules.mng_ac import MNGAC
from lightning_modules.msd import MSD
from lightning_modules.multi_norm_training import MultiNormTraining
from lightning_modules.on_manifold_adversarial_training import OnManifoldAdversarialTraining
from lightning_modules.on_manifold_robustness import OnManifoldRobustness
from lightning_modules.parametric_noise_injection import ParametricNoiseInjection
from lightning_modules.robustness_score import RobustnessScoreTraining
from lightning_modules.standard_training import StandardTraining
from lightning_modules.trades import TRADES
from lightning_modules.wasserstein_autoencoder import WassersteinAutoencoder
from lightning_modules.weighted_minimax import WeightedMinimax
from lightning_modules.yopo import YOPO

__all__ = [
    "MNGAC",
    "MSD",
    "TRADES",
    "YOPO",
    "AdversarialBNN",
    "AdversarialTraining",
    "AttackedClassifier",
    "ContextualBudgets",
    "CrossLipschitz",
    "FreeAdversarialTraining",
    "InstanceAdaptiveTraining",
    "Learn2Perturb",
    "MixedAdversarialTraining",
    "MultiNormClassifier",
    "MultiNormTraining",
    "OnManifoldAdversarialTraining",
    "OnManifoldRobustness",
    "ParametricNoiseInjection",
    "RobustClassifier",
    "RobustnessScoreTraining",
    "StandardTraining",
    "TrainingModule",
    "WassersteinAutoencoder",
    "WeightedMinimax",
]
