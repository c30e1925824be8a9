"""The methods that train on attacks, small enough for the testers."""

import pytest

from tests.testers import ROOT

# extra settings; None for methods without an attack
ATTACKED: dict[str, list[str] | None] = {
    "standard_training": None,
    "adversarial_training": [],
    "trades": [],
    "free_adversarial_training": None,
    "yopo": None,
    "instance_adaptive_training": ["--model.warmup_epochs=1"],
    "weighted_minimax": [],
    "weighted_trades": ["--model.beta=5"],
    "mixed_adversarial_training": [],
    "parametric_noise_injection": ["--model.adversarial_delay=1"],
    "adversarial_bnn": [],
    "learn2perturb": ["--model.noise_delay=1", "--model.adversarial_delay=2"],
}
# their steps are parts of the other methods' steps
SLOW = ("standard_training", "adversarial_training", "trades", "mixed_adversarial_training", "adversarial_bnn")
METHODS = [pytest.param(method, marks=pytest.mark.slow) if method in SLOW else method for method in ATTACKED]
STOCHASTIC = ("parametric_noise_injection", "adversarial_bnn", "learn2perturb")


NO_GENERATOR = ["--model.generator=null"]
# the multi-norm methods: config folder and extra settings
MULTI_NORM: dict[str, tuple[str, list[str]]] = {
    "mng_ac": (
        "mng_ac",
        [
            "--model.generator=robust.networks.NoiseGenerator",
            "--model.generator.channels=1",
            "--model.generator_optimizer.init_args.lr=5",  # its gradient is small
        ],
    ),
    "sat": ("mng_ac", [*NO_GENERATOR, "--model.consistency=0"]),
    "average": ("multi_norm_training", []),
    "maximum": ("multi_norm_training", ["--model.combine=maximum"]),
    "msd": ("msd", ["--model.attack.steps=2"]),
}


def multi_norm(method: str, attack: str = "robust.attacks.PGD") -> list[str]:
    """Arguments of ``fit``: the method's config for Digits, made small, with schedules in the ramp."""
    folder, own = MULTI_NORM[method]
    settings = [
        f"--config={ROOT / 'configs' / folder / 'digits.yaml'}",
        "--data.batch_size=8",
        "--data.eval_batch_size=64",
        "--trainer.max_epochs=4",
        "--trainer.limit_train_batches=4",
        "--trainer.callbacks=[{class_path: CertifiedEvaluation, init_args: {every_n_epochs: 1}}]",
        *own,
    ]
    if folder != "msd":
        for norm in ("linf", "l2", "l1"):
            settings += [f"--model.attack_{norm}={attack}", f"--model.attack_{norm}.steps=2"]
    return settings


def attacked(method: str) -> list[str]:
    """Arguments of ``fit``: the method's config for Digits, made small."""
    own = ATTACKED[method]
    folder = "weighted_minimax" if method == "weighted_trades" else method
    evaluation = "{class_path: CertifiedEvaluation, init_args: {every_n_epochs: 1}}"
    settings = [
        f"--config={ROOT / 'configs' / folder / 'digits.yaml'}",
        "--data.batch_size=16",
        "--data.eval_batch_size=64",
        "--trainer.max_epochs=3",
        "--trainer.limit_train_batches=4",
        f"--trainer.callbacks=[{'' if method in STOCHASTIC else evaluation}]",  # noise has no bounds
        "--model.optimizer.init_args.lr=0.01",
    ]
    if own is not None:
        settings += ["--model.attack=robust.attacks.PGD", "--model.attack.steps=2", *own]
    if method == "yopo":
        settings += ["--model.outer=2", "--model.inner=1"]
    if method == "free_adversarial_training":
        settings.append("--model.replays=2")
    return settings
