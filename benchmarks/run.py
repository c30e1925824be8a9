"""Run the benchmarks, and write their ratios to ``results/benchmarks``, from which the tables of the docs are made.

    uv run benchmarks/run.py [NAME ...] [--rounds 10]     # all by default, peers included: about 15 minutes
    uv run benchmarks/run.py --quick                      # a minute: fails where a ratio is 1.5 times as recorded
    uv run benchmarks/run.py --quick --record             # write what the quick variant compares with
    uv run benchmarks/run.py --device cuda                # on a GPU, without the loading of data

All are ratios, lower is better: of times that take turns in one process, on one thread or one GPU, or of memory. Then
``uv run report.py --update-docs`` writes the tables. The quick variant has fewer rounds and no peers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that the checkout's own packages are measured

from benchmarks import attacks, bounds, certification, data, memory, noise, peers, precision, shares
from benchmarks.turns import Case, ratios
from callbacks.machine import cpu_name, git_commit, installed_versions
from robust.networks import DMLarge, DMSmall
from robust.threat_models import PixelBox

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"
WORSE = 1.5
Columns = dict[str, dict[str, float]]


class Benchmark(NamedTuple):
    """What the ratios are to, what gives them from rounds, whether the variant is quick and the device, and of what."""

    unit: str
    columns: Callable[[int, bool, str], Columns]
    quantity: str = "time"


def of_bounds(rounds: int, quick: bool, device: str) -> Columns:
    """Time of training steps by each bound."""
    return {name: ratios(cases, rounds) for name, cases in steps_of_bounds(quick, device)}


def of_shares(rounds: int, quick: bool, device: str) -> Columns:
    """Where the time of three of these steps goes."""
    steps = dict(steps_of_bounds(quick, device))["DM-small, batch 256"]
    named = {name: shares.of_step(steps[name], rounds) for name in ("plain", "own IBP", "own CROWN-IBP, fused")}
    plain = sum(named["plain"].values())
    return {name: {kind: each / plain for kind, each in seconds.items()} for name, seconds in named.items()}


def of_memory(rounds: int, quick: bool, device: str) -> Columns:
    """Memory of the same steps, which does not depend on rounds."""
    return {name: memory.ratios(cases, device) for name, cases in steps_of_bounds(quick, device)}


def steps_of_bounds(quick: bool, device: str) -> Iterator[tuple[str, dict[str, Case]]]:
    """Training steps by each bound, of each network."""
    sizes = {"DM-small, batch 256": (DMSmall(), 256), "DM-large, batch 16": (DMLarge(), 16)}
    if quick:
        sizes = {"DM-small, batch 64": (DMSmall(), 64)}
    if device == "cuda":  # at batches that fill a GPU, too
        sizes |= {"DM-small, batch 8192": (DMSmall(), 8192), "DM-large, batch 1024": (DMLarge(), 1024)}
    for name, (network, batch) in sizes.items():
        network.to(device)
        x, y = torch.rand(batch, 1, 28, 28, device=device), torch.randint(10, (batch,), device=device)
        steps = bounds.steps(network, x, y, (0.1 * torch.rand_like(x)).requires_grad_())
        omitted = ("auto_LiRPA", "unfused", "bf16") if quick else ()  # not every processor has bf16 instructions
        cases = {
            each: (lambda step=step: step().backward())
            for each, step in steps.items()
            if not any(part in each for part in omitted)
        }
        yield name, cases


def of_attacks(rounds: int, quick: bool, device: str) -> Columns:
    """Steps of PGD in each threat model."""
    steps = 5 if quick else 20
    network = DMSmall((1, 28, 28)).to(device)
    attacks.train(network, device, epochs=5)
    x, y = attacks.digits("test", device)
    balls = {**attacks.BALLS, "per-pixel budgets": PixelBox(0.3 * torch.rand_like(x))}
    runs = {"plain passes": attacks.plain(network, steps)}
    for name, ball in balls.items():
        runs[name] = attacks.ours(network, steps, ball)
        if not quick:
            runs[f"{name}, early stop"] = attacks.ours(network, steps, ball, early_stop=True)
    return {"PGD": ratios({name: (lambda attack=attack: attack(x, y)) for name, attack in runs.items()}, rounds)}


def of_certification(rounds: int, quick: bool, device: str) -> Columns:
    """Verdicts and margins of test images."""
    of_digits = {"DM-small, digits": certification.measure_digits(rounds, peers=not quick, device=device)}
    return of_digits | ({} if quick else {"learned budgets, MNIST": certification.measure_mnist(rounds, device)})


def of_noise(rounds: int, quick: bool, device: str) -> Columns:
    """Training steps with each kind of noise."""
    batch = 32 if quick else 128
    x, y = torch.rand(batch, *noise.SHAPE, device=device), torch.randint(10, (batch,), device=device)
    kinds = noise.networks(device)
    optimizers = {name: torch.optim.SGD(kind.parameters(), lr=1e-3, momentum=0.9) for name, kind in kinds.items()}
    cases = {name: (lambda name=name: noise.seconds(kinds[name], optimizers[name], x, y)) for name in kinds}
    return {"ResNet-20": ratios(cases, rounds)}


def of_data(rounds: int, quick: bool, device: str) -> Columns:
    """Epochs of batches, over torchvision's with its better number of workers: 0 on one thread."""
    columns, count = {}, 2_560 if quick else 12_800
    for name, shape in data.SHAPES.items():
        pipelines = {"torchvision": data.usual(shape, count, 0), "ours": data.ours(shape, count)}
        cases = {each: (lambda epoch=epoch: data.rate(epoch)) for each, epoch in pipelines.items()}
        columns[name] = ratios(cases, rounds)
    return columns


def of_precision(rounds: int, quick: bool, device: str) -> Columns:
    """Training steps in less precision."""
    batch = 4 if quick else 256
    columns = {f"ResNet-18, batch {batch}": ratios(precision.resnet_cases(batch, device), rounds)}
    return columns | ({"DM-small, batch 256": ratios(precision.graph_cases(256), rounds)} if device == "cuda" else {})


BENCHMARKS = {
    "bounds": Benchmark("a plain training step", of_bounds),
    "memory": Benchmark("a plain training step", of_memory, "memory"),
    "shares": Benchmark("a plain training step of DM-small, batch 256", of_shares),
    "certification": Benchmark("a plain forward pass", of_certification),
    "attacks": Benchmark("as many plain passes forward and back to the input", of_attacks),
    "noise": Benchmark("a training step without noise", of_noise),
    "data": Benchmark("an epoch of torchvision's batches", of_data),
    "precision": Benchmark("a plain float32 training step", of_precision),
}
PEERS = "peers"  # other libraries' attacks, in an environment that has them
NOT_ON: dict[str, tuple[str, ...]] = {
    "cpu": ("precision",),
    "cuda": ("data", "shares", PEERS),
}  # unless named, where it can be
NOT_QUICK = ("shares", PEERS)


def record(name: str, rounds: int, quick: bool, device: str = "cpu") -> dict[str, Any]:
    """Measure a benchmark: its ratios, and where they are from."""
    torch.manual_seed(0)
    benchmark = BENCHMARKS[name]
    columns = benchmark.columns(rounds, quick, device)
    rounded = {column: {row: float(f"{ratio:.3g}") for row, ratio in rows.items()} for column, rows in columns.items()}
    return {
        "quantity": benchmark.quantity,
        "unit": benchmark.unit,
        "columns": rounded,
        **({"rounds": rounds} if benchmark.quantity == "time" else {}),
        "hardware": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "commit": git_commit(),
        "versions": installed_versions(),
    }


def processor() -> str:
    """The processor and its instruction set, on which the times of plain passes depend.

    >>> processor().endswith(", 1 thread")
    True
    """
    return f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, 1 thread"


def read_quick(path: Path) -> dict[str, Any]:
    """Records of the quick variant of a benchmark by their hardware; none if there is no file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def run_peers(rounds: int, path: Path) -> None:
    """Measure other libraries by uv in an environment of their own."""
    uv = os.environ.get("UV") or shutil.which("uv")  # uv names itself to what it runs
    if uv is None:
        sys.exit("error: peers: there is no uv; install it, or run benchmarks/peers.py where the libraries are")
    needed = [part for name in peers.PACKAGES for part in ("--with", name)]
    command = [uv, "run", *needed, peers.__file__, "--rounds", str(rounds), "--out", str(path)]
    code = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    if code != 0:
        sys.exit(f"error: peers: uv ended with status {code}")


def slower(measured: Columns, recorded: Columns) -> list[str]:
    """The ratios that are more than 1.5 times those recorded, each as a line.

    >>> slower({"small": {"own": 3.2, "new": 9.0}}, {"small": {"own": 2.0}})
    ['small, own: 3.2, recorded 2']
    """
    return [
        f"{column}, {row}: {ratio:.3g}, recorded {recorded[column][row]:.3g}"
        for column, rows in measured.items()
        for row, ratio in rows.items()
        if row in recorded.get(column, {}) and ratio > WORSE * recorded[column][row]
    ]


def compare(names: list[str], rounds: int, results: Path) -> int:
    """The quick variant: print what is slower than recorded on this processor, measured twice; the exit status."""
    worse = []
    for name in names:
        recorded = read_quick(results / "quick" / f"{name}.json")
        if not recorded:
            print(f"{name}: there is no {name}.json; record it by --quick --record", file=sys.stderr)
            return 2
        if (here := processor()) not in recorded:  # plain passes are faster on some processors
            print(f"{name}: not compared; recorded on {'; '.join(recorded)}, this is {here}", flush=True)
            continue
        columns = recorded[here]["columns"]
        found = slower(record(name, rounds, True)["columns"], columns)
        if found:  # other load may have come in between
            found = slower(record(name, 3 * rounds, True)["columns"], columns)
        print(f"{name}: {'slower than recorded' if found else 'as recorded'}", flush=True)
        worse += [f"{name}, {line}" for line in found]
    print("\n".join(worse))
    return int(bool(worse))


def main(arguments: list[str] | None = None, results: Path = RESULTS) -> int:
    """Run what the arguments name; the exit status is 1 where the quick variant finds something slower."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = (*BENCHMARKS, PEERS)
    parser.add_argument("names", nargs="*", choices=[[], *known], metavar="NAME", help=", ".join(known))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--rounds", type=int, help="by default 10, quick 3")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and (options.quick or set(NOT_ON["cuda"]) & set(options.names)):
        left_out = ", ".join(NOT_ON["cuda"])
        parser.error(f"--device cuda: the quick variant and {left_out} are not measured on a GPU; leave them out")
    torch.set_num_threads(1)
    rounds = options.rounds or (3 if options.quick else 10)
    if options.quick and set(NOT_QUICK) & set(options.names):
        parser.error(f"--quick: {', '.join(NOT_QUICK)} have no quick variant; leave them out")
    left_out = NOT_ON[options.device] + (NOT_QUICK if options.quick else ())
    names = options.names or [name for name in known if name not in left_out]
    if options.quick and not options.record:
        return compare(names, rounds, results)
    folder = results / "quick" if options.quick else results
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / (f"cuda_{name}.json" if options.device == "cuda" else f"{name}.json")
        if name == PEERS:
            run_peers(rounds, path)
        else:
            measured = record(name, rounds, options.quick, options.device)
            content = read_quick(path) | {measured["hardware"]: measured} if options.quick else measured
            path.write_text(json.dumps(content, indent=1) + "\n")
        print(path, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
