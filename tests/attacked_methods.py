"""The methods that train on attacks, small enough for the testers."""

import torch

from robust.attacks import PGD
from tests.testers import ROOT


class FixedStart(PGD):
    """PGD from a start that is no matter of chance, so that any number of processes finds the same images."""

    def _started(self, threat_model, x):
        pattern = torch.linspace(0, 40, x[0].numel(), device=x.device).sin().view_as(x[:1])
        return threat_model.project(x + 0.3 * threat_model.radius * pattern, x)


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
        settings += ["--model.outer=2", "--model.inner=1"]
    if method == "free_adversarial_training":
        settings.append("--model.replays=2")
    return settings
