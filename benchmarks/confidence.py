"""Whether low confidence is why TRADES and weighted minimax lose less from A_rob to A_sa, on the digits or on MNIST.

    uv run benchmarks/confidence.py [--data mnist] [--out FILE]

The weights of A_sa, exp(-alpha margin) with the margin of probabilities, are nearly equal where a network is nowhere
confident. The logits are therefore scaled until the mean confidence on the clean validation images is that of
adversarial training, seed by seed; no prediction changes. The configs are those of the leaderboards. The attack is PGD,
on the digits' 299 test images or the first 2,000 of MNIST, once for both rows of a training.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the checkout's own packages are measured

import train
from benchmarks.tables import write_rows
from callbacks.machine import git_commit
from datamodules import MNIST, Digits
from datamodules.base import ImageDataModule, Split
from robust.attacks import PGD
from robust.checkpoints import load_weights
from robust.losses import probability_margin
from robust.metrics import WeightedAccuracy
from robust.networks import DMSmall
from robust.threat_models import LinfBall

ROOT = Path(__file__).resolve().parent.parent
SEEDS, ALPHA, LARGEST_SCALE = (0, 1, 2), 2.0, 64.0
DIGITS_ATTACK = PGD(10, 0.025, absolute=True, restarts=2)
METHODS = {"weighted_minimax": "weighted minimax", "trades": "TRADES"}
TITLES = ("training", "confidence under attack, %", "A_rob, %", "A_sa, alpha 2, %", "fall, points")


class Problem(NamedTuple):
    """Data, config files of the training by a method, below ``configs/``, attack, ball and number of test images."""

    data: Callable[[], ImageDataModule]
    files: Callable[[str], list[str]]
    attack: PGD
    ball: LinfBall
    test_images: int


def files_of_mnist(method: str) -> list[str]:
    """As in experiments/mnist.yaml."""
    name = "mnist_pgd" if method == "weighted_minimax" else "mnist"
    return [f"{method}/{name}.yaml", "common/attacked_mnist_fast.yaml"]


PROBLEMS = {
    "digits": Problem(Digits, lambda method: [f"{method}/digits.yaml"], DIGITS_ATTACK, LinfBall(0.1), 299),
    "mnist": Problem(MNIST, files_of_mnist, PGD(40, 0.01, absolute=True, restarts=2), LinfBall(0.3), 2000),
}


def main(arguments: list[str] | None = None) -> None:
    """Train, attack, scale and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write results as JSON to this file")
    parser.add_argument("--data", choices=PROBLEMS, default="digits", help="default: digits")
    given = parser.parse_args(arguments)
    problem = PROBLEMS[given.data]
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    git_commit()  # cached, so that the file names the code with which the measurement began
    measured: dict[str, list[list[float]]] = defaultdict(list)
    for seed in SEEDS:
        plain = trained(problem, "adversarial_training", seed)
        measured["adversarial training"].append(metrics_of(*attacked_logits(problem, plain)))
        wanted = confidence(logits_of(problem, plain))
        for method, name in METHODS.items():
            network = trained(problem, method, seed)
            logits, y = attacked_logits(problem, network)
            measured[name].append(metrics_of(logits, y))
            measured[f"{name}, scaled"].append(metrics_of(scale_for(problem, network, wanted) * logits, y))
    rows = [dict(zip(TITLES, [name, *mean_and_std(seeds)], strict=True)) for name, seeds in measured.items()]
    write_rows(f"benchmarks/confidence.py --data {given.data}", rows, given.out)


def trained(problem: Problem, method: str, seed: int) -> nn.Module:
    """The network that the configs train."""
    with tempfile.TemporaryDirectory() as folder:
        configs = [f"--config={ROOT / 'configs' / file}" for file in problem.files(method)]
        quiet = ["--test_after_fit=false", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
        train.main(["fit", *configs, f"--seed_everything={seed}", *quiet, f"--trainer.default_root_dir={folder}"])
        network = DMSmall((1, 28, 28), 10)
        (path,) = Path(folder).rglob("last.ckpt")
        load_weights(network, str(path), "weights")
    return network.eval()


def logits_of(problem: Problem, network: nn.Module) -> Tensor:
    """Logits of all clean validation images, (N, K)."""
    x, _ = images(problem, "val")
    with torch.no_grad():
        logits: Tensor = network(x)
    return logits


def images(problem: Problem, split: Split) -> tuple[Tensor, Tensor]:
    """Validation images, or those test images that are attacked, (N, 1, 28, 28), and their labels (N,)."""
    data = problem.data()
    data.prepare_data()
    data.setup("test" if split == "test" else "fit")
    part = data.images(split)
    return part[torch.arange(problem.test_images if split == "test" else len(part))]


def attacked_logits(problem: Problem, network: nn.Module) -> tuple[Tensor, Tensor]:
    """Logits of the attacked test images, (N, K), and labels."""
    x, y = images(problem, "test")
    torch.manual_seed(0)
    x_adv = problem.attack(network, problem.ball, x, y)
    with torch.no_grad():
        logits: Tensor = network(x_adv)
    return logits, y


def confidence(logits: Tensor) -> float:
    """Mean of the largest probabilities, in [0, 1]."""
    return float(logits.double().softmax(1).amax(1).mean())


def scale_for(problem: Problem, network: nn.Module, wanted: float) -> float:
    """Factor of the logits for a mean confidence on the clean validation images, by bisection."""
    logits, low, high = logits_of(problem, network), 0.0, LARGEST_SCALE
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if confidence(middle * logits) < wanted else (low, middle)
    return high


def metrics_of(logits: Tensor, y: Tensor) -> list[float]:
    """Confidence, A_rob, A_sa and their difference, in percent, of logits of attacked test images."""
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
