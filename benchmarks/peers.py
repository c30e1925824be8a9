"""PGD and APGD of other libraries beside ours, on the same network and images, with the same steps and random starts.

    uv run --with torchattacks --with foolbox benchmarks/peers.py [--rounds 10] [--out FILE]

``run.py peers`` runs it so. Times are ratios on one thread of implementations that took turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the checkout's own packages are measured

from benchmarks import attacks
from benchmarks.attacks import BALLS, Attack
from benchmarks.turns import Case, ratios
from callbacks.machine import cpu_name, git_commit, installed_versions
from robust.attacks import APGD
from robust.networks import DMSmall
from robust.threat_models import ThreatModel

PACKAGES = ("torchattacks", "foolbox")
STEPS, SEEDS = 20, 5


def rows(rounds: int) -> list[dict[str, str]]:
    """PGD and APGD of 20 steps on the digits' test images: time over as many plain passes, and accuracy."""
    network = DMSmall((1, 28, 28))
    attacks.train(network, "cpu")
    x, y = attacks.digits("test", "cpu")
    named = {(name, "PGD, ours"): attacks.ours(network, STEPS, ball) for name, ball in BALLS.items()}
    named |= {(name, "PGD, ours, early stop"): attacks.ours(network, STEPS, ball, True) for name, ball in BALLS.items()}
    named |= {(name, f"PGD, {peer}"): attack for (name, peer), attack in pgd(network).items()}
    named |= apgd(network)
    plain = attacks.plain(network, STEPS)
    cases: dict[str, Case] = {"plain": lambda: plain(x, y)}
    cases |= {"/".join(name): (lambda attack=attack: attack(x, y)) for name, attack in named.items()}
    times = ratios(cases, rounds)
    order = sorted(named, key=lambda name: list(BALLS).index(name[0]))
    return [
        {
            "threat model": name[0],
            "attack": name[1],
            "time over plain passes": f"{times['/'.join(name)]:.3g}",
            "accuracy, %": f"{accuracy(network, named[name], x, y):.1f}",
        }
        for name in order
    ]


def pgd(network: nn.Module) -> dict[tuple[str, str], Attack]:
    """PGD of other libraries with the settings of ours, by threat model and name."""
    import foolbox
    import torchattacks

    linf, l2, l1 = (ball.epsilon for ball in BALLS.values())
    fraction = 2.5 / STEPS
    model = foolbox.PyTorchModel(network, bounds=(0, 1))

    def fooled(attack: Callable[..., tuple[Tensor, Tensor, Tensor]], epsilon: float) -> Attack:
        return lambda x, y: attack(model, x, y, epsilons=epsilon)[1]

    return {
        ("linf", "torchattacks"): torchattacks.PGD(network, linf, fraction * linf, STEPS),
        ("linf", "foolbox"): fooled(foolbox.attacks.LinfPGD(rel_stepsize=fraction, steps=STEPS), linf),
        ("l2", "torchattacks"): torchattacks.PGDL2(network, l2, fraction * l2, STEPS),
        ("l2", "foolbox"): fooled(foolbox.attacks.L2PGD(rel_stepsize=fraction, steps=STEPS), l2),
        ("l1", "foolbox, SLIDE"): fooled(
            foolbox.attacks.SparseL1DescentAttack(rel_stepsize=fraction, steps=STEPS, random_start=True), l1
        ),
    }


def apgd(network: nn.Module) -> dict[tuple[str, str], Attack]:
    """APGD on the cross-entropy with one random start, ours and pyautoattack's, by threat model and name."""
    from pyautoattack.autopgd_base import APGDAttack

    def ours(ball: ThreatModel) -> Attack:
        attack = APGD(STEPS, loss="cross_entropy")
        return lambda x, y: attack(network, ball, x, y)

    def theirs(name: str, epsilon: float) -> Attack:
        attack = APGDAttack(
            network, norm=name.capitalize(), eps=epsilon, n_iter=STEPS, use_largereps=name == "l1", device="cpu"
        )

        def run(x: Tensor, y: Tensor) -> Tensor:
            attack.seed = int(torch.randint(2**31, ()))  # it seeds torch's generator by its own in every call
            return attack.perturb(x, y)

        return run

    named = {(name, "APGD, ours"): ours(ball) for name, ball in BALLS.items()}
    return named | {(name, "APGD, pyautoattack"): theirs(name, ball.epsilon) for name, ball in BALLS.items()}


def accuracy(network: nn.Module, attack: Attack, x: Tensor, y: Tensor) -> float:
    """Mean accuracy in percent under an attack with several seeds."""
    accuracies = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        x_adv = attack(x, y)
        with torch.no_grad():
            accuracies.append(100 * (network(x_adv).argmax(1) == y).float().mean().item())
    return statistics.mean(accuracies)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="write results as JSON to this file")
    given = parser.parse_args()
    if absent := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        parser.error(
            f"{', '.join(absent)}: not installed; run uv run {' '.join(f'--with {name}' for name in PACKAGES)}"
        )
    warnings.simplefilter("ignore")  # of their imports
    torch.set_num_threads(1)
    torch.manual_seed(0)
    record = {
        "command": "benchmarks/run.py peers",
        "commit": git_commit(),
        "hardware": f"{cpu_name()}, 1 thread, {given.rounds} rounds",
        "versions": installed_versions() | {name: version(name) for name in (*PACKAGES, "pyautoattack")},
        "rows": rows(given.rounds),
    }
    text = json.dumps(record, indent=1)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
