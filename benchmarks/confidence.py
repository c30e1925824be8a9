"""Whether low confidence is why TRADES and weighted minimax lose less from A_rob to A_sa, on the digits.

    uv run benchmarks/confidence.py [--out FILE]

The weights of A_sa, exp(-alpha margin) with the margin of probabilities, are nearly equal where a network is nowhere
confident. The logits are therefore scaled until the mean confidence on the clean validation images is that of
adversarial training, seed by seed; no prediction changes. The configs are those of the leaderboard. The attack is that
of its protocol, on the 299 test images, once for both rows of a training.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the checkout's own packages are measured

import train
from benchmarks.tables import write_rows
from callbacks.results import git_commit
from datamodules import Digits
from datamodules.base import Split
from robust.attacks import PGD
from robust.checkpoints import load_weights
from robust.losses import probability_margin
from robust.metrics import WeightedAccuracy
from robust.networks import DMSmall
from robust.threat_models import LinfBall

ROOT = Path(__file__).resolve().parent.parent
SEEDS, ALPHA, LARGEST_SCALE = (0, 1, 2), 2.0, 64.0
ATTACK, BALL = PGD(10, 0.025, absolute=True, restarts=2), LinfBall(0.1)
METHODS = {"weighted_minimax": "weighted minimax", "trades": "TRADES"}
TITLES = ("training", "confidence under attack, %", "A_rob, %", "A_sa, alpha 2, %", "fall, points")


def main(arguments: list[str] | None = None) -> None:
    """Train, attack, scale and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write results as JSON to this file")
    out = parser.parse_args(arguments).out
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    git_commit()  # cached, so that the file names the code with which the measurement began
    measured: dict[str, list[list[float]]] = defaultdict(list)
    for seed in SEEDS:
        plain = trained("adversarial_training", seed)
        measured["adversarial training"].append(metrics_of(attacked_logits(plain)))
        wanted = confidence(logits_of(plain, "val"))
        for method, name in METHODS.items():
            network = trained(method, seed)
            logits = attacked_logits(network)
            measured[name].append(metrics_of(logits))
            measured[f"{name}, scaled"].append(metrics_of(scale_for(network, wanted) * logits))
    rows = [dict(zip(TITLES, [name, *mean_and_std(seeds)], strict=True)) for name, seeds in measured.items()]
    write_rows("benchmarks/confidence.py", rows, out)


def trained(method: str, seed: int) -> nn.Module:
    """The network that the config of the digits trains."""
    with tempfile.TemporaryDirectory() as folder:
        config = f"--config={ROOT / 'configs' / method / 'digits.yaml'}"
        quiet = ["--test_after_fit=false", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
        train.main(["fit", config, f"--seed_everything={seed}", *quiet, f"--trainer.default_root_dir={folder}"])
        network = DMSmall((1, 28, 28), 10)
        (path,) = Path(folder).rglob("last.ckpt")
        load_weights(network, str(path), "weights")
    return network.eval()


def logits_of(network: nn.Module, split: Split) -> Tensor:
    """Logits of all clean images of a split, (N, K)."""
    x, _ = images(split)
    with torch.no_grad():
        logits: Tensor = network(x)
    return logits


def images(split: Split) -> tuple[Tensor, Tensor]:
    """All digits of a split, (N, 1, 28, 28), and their labels (N,)."""
    data = Digits()
    data.setup("test" if split == "test" else "fit")
    part = data.images(split)
    return part[torch.arange(len(part))]


def attacked_logits(network: nn.Module) -> Tensor:
    """Logits of the attacked test images, (N, K)."""
    x, y = images("test")
    torch.manual_seed(0)
    x_adv = ATTACK(network, BALL, x, y)
    with torch.no_grad():
        logits: Tensor = network(x_adv)
    return logits


def confidence(logits: Tensor) -> float:
    """Mean of the largest probabilities, in [0, 1]."""
    return float(logits.double().softmax(1).amax(1).mean())


def scale_for(network: nn.Module, wanted: float) -> float:
    """Factor of the logits for a mean confidence on the clean validation images, by bisection."""
    logits, low, high = logits_of(network, "val"), 0.0, LARGEST_SCALE
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if confidence(middle * logits) < wanted else (low, middle)
    return high


def metrics_of(logits: Tensor) -> list[float]:
    """Confidence, A_rob, A_sa and their difference, in percent, of logits of attacked test images."""
    _, y = images("test")
    correct, metric = logits.argmax(1) == y, WeightedAccuracy([ALPHA])
    metric.update(probability_margin(logits.double(), y), correct)
    a_rob, a_sa = float(correct.double().mean()), float(metric.compute()["accuracy"])
    return [100 * value for value in (confidence(logits), a_rob, a_sa, a_rob - a_sa)]


def mean_and_std(of_seeds: list[list[float]]) -> list[str]:
    """Mean and std of each metric over the seeds."""
    values = torch.tensor(of_seeds, dtype=torch.float64)
    return [f"{mean:.1f} ± {std:.1f}" for mean, std in zip(values.mean(0), values.std(0), strict=True)]


if __name__ == "__main__":
    main()
