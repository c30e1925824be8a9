"""The methods that train on attacks, small enough for the testers."""

import torch

from lightning_modules import YOPO
from robust.attacks import PGD
from robust.networks import NoiseGenerator
from tests.testers import ROOT


def fixed_start(threat_model, x):
    """A start that is no matter of chance, so that any number of processes finds the same images."""
    pattern = torch.linspace(0, 40, x[0].numel(), device=x.device, dtype=x.dtype).sin().view_as(x[:1])
    return threat_model.project(x + 0.3 * threat_model.radius * pattern, x)


class FixedStart(PGD):
    """PGD from there."""

    def _started(self, threat_model, x):
        return fixed_start(threat_model, x)


class FixedYOPO(YOPO):
    """YOPO from there."""

    def start(self, ball, x):
        return fixed_start(ball, x)


class FixedNoise(NoiseGenerator):
    """A generator whose random numbers are the same for all images."""

    def draw(self, x):
        shape = (1, x.shape[1], x.shape[2] + 2, x.shape[3] + 2)
        pattern = torch.arange(1, 1 + shape[1] * shape[2] * shape[3], dtype=x.dtype, device=x.device).mul(2.3).sin()
        return 1.4 * pattern.view(shape).expand(len(x), -1, -1, -1)


# settings of their own; None for those without an attack
ATTACKED: dict[str, list[str] | None] = {
    "standard_training": None,
    "adversarial_training": [],
    "trades": [],
    "free_adversarial_training": None,
    "yopo": None,
    "instance_adaptive_training": ["--model.warmup_epochs=1"],
    "weighted_minimax": [],
    "weighted_trades": ["--model.beta=5"],
}


NO_GENERATOR = ["--model.generator=null"]
# the multi-norm methods: config folder, and settings of their own
MULTI_NORM: dict[str, tuple[str, list[str]]] = {
    "mng_ac": (
        "mng_ac",
        [
            f"--model.generator={__name__}.FixedNoise",
            "--model.generator.channels=1",
            "--model.generator_optimizer.init_args.lr=5",  # its gradient is small
        ],
    ),
    "sat": ("mng_ac", [*NO_GENERATOR, "--model.consistency=0"]),
    "average": ("multi_norm_training", []),
    "maximum": ("multi_norm_training", ["--model.combine=maximum"]),
    "msd": ("msd", ["--model.attack.steps=2"]),
}


def multi_norm(method: str, attack: str = f"{__name__}.FixedStart") -> list[str]:
    """Arguments of ``fit``: the method's config for Digits, made small, its schedules in the ramp."""
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
    """Arguments of ``fit``: the method's config for Digits, made small; without random draws in the attack."""
    own = ATTACKED[method]
    folder = "weighted_minimax" if method == "weighted_trades" else method
    settings = [
        f"--config={ROOT / 'configs' / folder / 'digits.yaml'}",
        "--data.batch_size=16",
        "--data.eval_batch_size=64",
        "--trainer.max_epochs=3",
        "--trainer.limit_train_batches=4",
        "--trainer.callbacks=[{class_path: CertifiedEvaluation, init_args: {every_n_epochs: 1}}]",
        "--model.optimizer.init_args.lr=0.01",
    ]
    if own is not None:
        settings += [f"--model.attack={__name__}.FixedStart", "--model.attack.steps=2", *own]
    if method == "yopo":
        settings += [f"--model.class_path={__name__}.FixedYOPO", "--model.outer=2", "--model.inner=1"]
    if method == "free_adversarial_training":
        settings.append("--model.replays=2")
    return settings
