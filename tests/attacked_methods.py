"""The methods that train on attacks, small enough for the testers."""

import pytest
import torch
from pytorch_lightning import Callback

from lightning_modules import YOPO
from robust.attacks import PGD
from robust.networks import NoiseGenerator, noise_sources
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


class FixedNoise(Callback):
    """Noise that is no matter of chance either: the same for all examples, in all passes."""

    def setup(self, trainer, pl_module, stage):
        for source in noise_sources(pl_module):
            source.draw = self.draw

    @staticmethod
    def draw(like):
        pattern = torch.linspace(0, 40, like[0].numel(), device=like.device, dtype=like.dtype).cos()
        return pattern.view_as(like[:1]).expand_as(like)


class FixedGenerator(NoiseGenerator):
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
    "mixed_adversarial_training": [],
    "parametric_noise_injection": ["--model.adversarial_delay=1"],
    "adversarial_bnn": [],
    "learn2perturb": ["--model.noise_delay=1", "--model.adversarial_delay=2"],
}
# their steps are parts of the others'
SLOW = ("standard_training", "adversarial_training", "trades", "mixed_adversarial_training", "adversarial_bnn")
METHODS = [pytest.param(method, marks=pytest.mark.slow) if method in SLOW else method for method in ATTACKED]
STOCHASTIC = ("parametric_noise_injection", "adversarial_bnn", "learn2perturb")


NO_GENERATOR = ["--model.generator=null"]
# the multi-norm methods: config folder, and settings of their own
MULTI_NORM: dict[str, tuple[str, list[str]]] = {
    "mng_ac": (
        "mng_ac",
        [
            f"--model.generator={__name__}.FixedGenerator",
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
        settings += [f"--model.attack={__name__}.FixedStart", "--model.attack.steps=2", *own]
    if method == "yopo":
        settings += [f"--model.class_path={__name__}.FixedYOPO", "--model.outer=2", "--model.inner=1"]
    if method == "free_adversarial_training":
        settings.append("--model.replays=2")
    return settings
