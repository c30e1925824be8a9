"""Every method with its own config for Digits, as users run it, in a few steps that include all of its phases."""

import torch
from torch import nn

from robust.networks import Autoencoder
from tests.testers import ROOT

NO_DROPOUT = ["--model.classifier.dropout=0"]  # torch's own draws differ between processes
NO_GENERATOR = ["--model.generator=null"]


class BatchNormalised(nn.Sequential):
    """A network of a user's own."""

    def __init__(self) -> None:
        convolutions = nn.Conv2d(1, 4, 4, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
        super().__init__(*convolutions, nn.Linear(196, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


OWN = f"{__name__}.BatchNormalised"

# config folder and extra settings
METHODS: dict[str, tuple[str, list[str]]] = {
    "standard_training": ("standard_training", []),
    "adversarial_training": ("adversarial_training", []),
    "adversarial_training_early_stop": (
        "adversarial_training",
        ["--model.attack.init_args.early_stop=true", "--model.attack.init_args.restarts=2", "--model.norm=l2"],
    ),
    "trades": ("trades", []),
    "free_adversarial_training": ("free_adversarial_training", []),
    "yopo": ("yopo", []),
    "instance_adaptive_training": ("instance_adaptive_training", ["--model.warmup_epochs=1"]),
    "weighted_minimax": ("weighted_minimax", []),
    "weighted_trades": ("weighted_minimax", ["--model.beta=5"]),
    "mixed_adversarial_training": ("mixed_adversarial_training", []),
    "parametric_noise_injection": ("parametric_noise_injection", ["--model.adversarial_delay=1"]),
    "adversarial_bnn": ("adversarial_bnn", []),
    "learn2perturb": ("learn2perturb", ["--model.noise_delay=1", "--model.adversarial_delay=2"]),
    "mng_ac": ("mng_ac", []),
    "sat": ("mng_ac", [*NO_GENERATOR, "--model.consistency=0"]),
    "sat_ac": ("mng_ac", NO_GENERATOR),
    "average": ("multi_norm_training", []),
    "maximum": ("multi_norm_training", ["--model.combine=maximum"]),
    "msd": ("msd", []),
    "contextual_budgets": (
        "contextual_budgets",
        ["--epsilon_schedule.start_epoch=1", "--epsilon_schedule.length=2", "--checkpoint.monitor=null"],
    ),
    "contextual_budgets_range": (
        "contextual_budgets",
        [
            "--epsilon_schedule.start_epoch=1",
            "--epsilon_schedule.length=2",
            "--checkpoint.monitor=null",
            "--model.alpha_low_start=0.1",
            "--model.generator=robust.networks.ConvolutionalBudgetGenerator",
        ],
    ),
    "contextual_budgets_sabr": (
        "contextual_budgets",
        [
            "--epsilon_schedule.start_epoch=1",
            "--epsilon_schedule.length=2",
            "--checkpoint.monitor=null",
            "--model.robust_loss=robust.certified_losses.SABR",
        ],
    ),
    "contextual_budgets_batch_norm": (
        "contextual_budgets",
        [
            "--epsilon_schedule.start_epoch=1",
            "--epsilon_schedule.length=2",
            "--checkpoint.monitor=null",
            "--model.classifier=robust.networks.ResNetB",
            "--model.classifier.init_args.image_shape=[1, 28, 28]",
            "--model.classifier.init_args.width=2",
            "--model.classifier.init_args.batch_norm=true",
            "--model.interval_initialisation=true",
            "--model.interval_weight=0.5",
            "--model.robust_loss=robust.certified_losses.CCIBP",
        ],
    ),
    # batch normalisation with second derivatives, and with random weights
    "mng_ac_batch_norm": ("mng_ac", [f"--model.classifier={OWN}", "--model.optimizer.init_args.lr=0.01"]),
    "adversarial_bnn_batch_norm": ("adversarial_bnn", [f"--model.classifier.init_args.network={OWN}"]),
    "robustness_score": (
        "robustness_score",
        ["--model.warmup_epochs=1", "--model.generator_epochs=1", "--model.generator.width=2", *NO_DROPOUT],
    ),
    "cross_lipschitz": ("cross_lipschitz", ["--model.penalty_fraction=0.25", *NO_DROPOUT]),
    "wasserstein_autoencoder": (
        "wasserstein_autoencoder",
        # a bias before batch normalisation has gradient 0: with a small eps, Adam steps along its rounding error
        ["--model.pretraining_batches=2", "--model.optimizer.init_args.eps=1e-6"],
    ),
    "on_manifold_robustness": ("on_manifold_robustness", NO_DROPOUT),
    "on_manifold_adversarial_training": (
        "on_manifold_adversarial_training",
        ["--model.attack.init_args.steps=3", *NO_DROPOUT],
    ),
}


def settings_of(name, folder, batch_size=12):
    """Arguments of ``fit``: 15 steps of a method in float64, in 5 epochs. There is no evaluation.

    Batch normalisation takes its statistics over all processes.
    """
    config, own = METHODS[name]
    settings = [
        f"--config={ROOT / 'configs' / config / 'digits.yaml'}",
        f"--data.batch_size={batch_size}",
        f"--data.eval_batch_size={batch_size}",
        "--trainer.max_epochs=5",
        "--trainer.limit_train_batches=3",
        "--trainer.limit_val_batches=0",
        "--trainer.callbacks=null",
        "--trainer.precision=64-true",
        "--trainer.sync_batchnorm=true",
        "--test_after_fit=false",
        *own,
    ]
    if config.startswith("on_manifold"):
        settings.append(f"--model.autoencoder_checkpoint={autoencoder_checkpoint(folder)}")
    return settings


def autoencoder_checkpoint(folder):
    """A checkpoint as the training of the configs' autoencoder writes it."""
    path = folder / "autoencoder.ckpt"
    if not path.exists():
        torch.manual_seed(0)
        weights = Autoencoder((1, 28, 28), code_size=8, width=8).state_dict()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": {f"autoencoder.{name}": weight for name, weight in weights.items()}}, path)
    return path
