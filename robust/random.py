"""Random numbers for the examples of a batch, which are the same on any number of processes.

Inside :func:`numbered` every example has a number: its index in the global batch of a training step, or in the
data of an evaluation. What is drawn for it depends on the key, its number, and which draw it is. It does not depend
on the process that has it, on the other examples there, or on how many of them an attack still works on. To that end
numbers are drawn in blocks of 64 examples, each from a seed of its own, and an example takes its row. Elsewhere, as in
the use of this library without a trainer, all functions draw as torch does, from its global generators.

The first dimension of a draw holds the current examples: those of :func:`numbered`, or those chosen by :func:`part`. If
there are n of them, it has n * k rows, of which rows i * k to i * k + k - 1 belong to example i. A first dimension that
n does not divide holds something else than the examples: such a draw comes from torch's global generator also inside
:func:`numbered`, and may then differ between numbers of processes. The functions ``shared_*`` take any shape.

Numbers are drawn on the device of the tensor ``like``, so that CPU and CUDA give different ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robust.errors import require
from robust.seeds import seed

BLOCK = 64  # examples: enough that seeding costs nothing, few enough that a process draws little for other processes
Fill = Callable[[Tensor, torch.Generator | None], object]


@dataclass
class _Draws:
    """The source of random numbers of the examples ``rows`` of ``total``, or of the ``chosen`` among them."""

    key: int
    rows: range
    total: int | None
    spacing: int = 1
    chosen: Tensor | None = None  # positions in rows
    count: int = 0

    def next_key(self) -> int:
        self.count += 1
        return hash((self.key, self.count))

    def choose(self, chosen: Tensor | None) -> Tensor | None:
        """Positions in ``rows`` of those ``chosen``, indices or mask, among the current ones."""
        if chosen is None:
            return self.chosen
        before = torch.arange(len(self.rows), device=chosen.device) if self.chosen is None else self.chosen
        return before.to(chosen.device)[chosen]

    def pieces(self, dense: bool) -> Iterator[tuple[int, int, slice, slice]]:
        """For each block: its index and size, which of its examples there are, and their positions in ``rows``."""
        spacing = self.spacing if dense else 1
        first, step = self.rows.start // spacing, self.rows.step // spacing
        rows = range(first, first + step * len(self.rows), step)
        total = None if dense and spacing > 1 else self.total
        for block in range(rows.start // BLOCK, rows[-1] // BLOCK + 1):
            start = block * BLOCK
            size = BLOCK if total is None else min(BLOCK, total - start)
            low = max(-(-(start - rows.start) // rows.step), 0)
            high = min(-(-(start + size - rows.start) // rows.step), len(rows))
            if low < high:
                own = slice(rows[low] - start, rows[high - 1] - start + 1, rows.step)
                yield block, size, own, slice(low, high)


_active: ContextVar[_Draws | None] = ContextVar("draws", default=None)
_generators: dict[torch.device, torch.Generator] = {}


@contextmanager
def numbered(key: Sequence[int], rows: range, total: int | None = None, spacing: int = 1) -> Iterator[None]:
    """Let what is drawn inside depend on ``key``, the examples' numbers and the order of the draws alone.

    Args:
        key: integers of at least 0, such as (seed, epoch, batch): equal in all processes.
        rows: the numbers of the batch's examples on this process, in their order; rising.
        total: number of all examples, if known; nothing is drawn for numbers from ``total`` on.
        spacing: distance of neighbours' numbers, over all processes; :func:`channel_noise_like` counts in it.

    Raises:
        SettingError: if the step of ``rows`` is no multiple of ``spacing``.
    """
    require(rows.step % spacing == 0, "spacing", spacing, f"give a divisor of {rows.step}, the step of the rows")
    token = _active.set(_Draws(hash(tuple(key)), rows, total, spacing))
    try:
        yield
    finally:
        _active.reset(token)


def is_numbered() -> bool:
    """Whether :func:`numbered` is in force."""
    return _active.get() is not None


@contextmanager
def part(chosen: Tensor | None = None) -> Iterator[None]:
    """Draw for a part of the batch; later draws do not depend on how many were made inside.

    Put a loop whose length depends on the examples of this process into one.

    Args:
        chosen: examples of the current part, indices or mask; all of them by default.
    """
    outer = _active.get()
    if outer is None:
        yield
        return
    token = _active.set(replace(outer, key=outer.next_key(), chosen=outer.choose(chosen), count=0))
    try:
        yield
    finally:
        _active.reset(token)


@contextmanager
def rewound(device: torch.device) -> Iterator[None]:
    """Restore all generators on exit, so that later draws repeat those made inside; torch's on CPU and ``device``."""
    draws = _active.get()
    count = 0 if draws is None else draws.count
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        if draws is not None:
            draws.count = count


@contextmanager
def global_seed(device: torch.device, *key: int) -> Iterator[None]:
    """Seed torch's generators on CPU and ``device`` by ``key``, and restore them on exit.

    >>> def draw():
    ...     with global_seed(torch.device("cpu"), 0, 1):
    ...         return torch.rand(3)
    >>> torch.equal(draw(), draw())
    True
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seed_generators(seed(*key), device)
        yield


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's own generators on CPU and ``device``, as ``torch.manual_seed`` does.

    That function also notes a stack trace for each kind of device that was not used yet, each time.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def rand(shape: Sequence[int], like: Tensor) -> Tensor:
    """Uniform in [0, 1), of that shape and of the type and device of ``like``.

    The first dimension is a multiple of the number of current examples; else torch's global generator draws, as the
    module's docstring explains.
    """
    return _drawn(lambda out, generator: out.uniform_(generator=generator), shape, like)


def rand_like(x: Tensor) -> Tensor:
    """Uniform in [0, 1), of the shape of ``x`` (B, ...); B as the first dimension of :func:`rand`."""
    return rand(x.shape, x)


def randn(shape: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal; shape, type and device as for :func:`rand`."""
    return _drawn(_normal, shape, like)


def randn_like(x: Tensor) -> Tensor:
    """Standard normal, of the shape of ``x`` (B, ...); B as the first dimension of :func:`rand`."""
    return randn(x.shape, x)


def channel_noise_like(x: Tensor) -> Tensor:
    """Standard normal, for feature maps ``x`` (B, C, ...), from few drawn maps; B as in :func:`rand`.

    Each block of examples has one row of maps. An example's channels are a window of it, one further than that of the
    example before, with random signs. So all numbers of an example are independent, as are those of one unit in all
    examples. Numbers of other units in other examples are uncorrelated, while their sizes may be equal.

    Where an evaluation takes few of many images, neighbours are in one block, whatever their indices; otherwise most
    maps would be drawn for images that are not there. So an image's noise depends on which images are evaluated.
    """

    def fill(out: Tensor, generator: torch.Generator | None) -> None:
        maps = out.flatten(0, out.dim() - x.dim())  # examples, with several of each one behind the other
        count, channels, *rest = maps.shape
        row = torch.empty((max(count, 1) + channels - 1, *rest), dtype=out.dtype, device=out.device)
        row.normal_(generator=generator)
        signs = torch.empty((count, channels), dtype=out.dtype, device=out.device)
        signs.bernoulli_(generator=generator).mul_(2).sub_(1)
        windows = row.unfold(0, channels, 1)[:count].movedim(-1, 1)
        torch.mul(windows, signs.view(count, channels, *[1] * len(rest)), out=maps)

    return _drawn(fill, x.shape, x, dense=True)


def exponential_like(x: Tensor) -> Tensor:
    """Exponential of mean 1, of the shape of ``x`` (B, ...); B as the first dimension of :func:`rand`."""
    return _drawn(lambda out, generator: out.exponential_(generator=generator), x.shape, x)


def truncated_normal_like(x: Tensor, limit: float) -> Tensor:
    """Standard normal, given that it is in [-limit, limit], of the shape of ``x`` (B, ...); B as in :func:`rand`."""

    def fill(out: Tensor, generator: torch.Generator | None) -> None:
        nn.init.trunc_normal_(out, a=-limit, b=limit, generator=generator)

    return _drawn(fill, x.shape, x)


def shared_rand(shape: Sequence[int], like: Tensor) -> Tensor:
    """Uniform in [0, 1): one draw for the examples of all processes, of any shape."""
    return _shared(lambda out, generator: out.uniform_(generator=generator), shape, like)


def shared_randn(shape: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal: one draw for the examples of all processes, of any shape."""
    return _shared(_normal, shape, like)


def shared_choice(count: int) -> int:
    """One of 0, 1, ..., count - 1, the same for the examples of all processes."""
    like = torch.empty(0, dtype=torch.int64)
    return int(_shared(lambda out, generator: out.random_(count, generator=generator), (1,), like))


def _normal(out: Tensor, generator: torch.Generator | None) -> None:
    out.normal_(generator=generator)


def _drawn(fill: Fill, shape: Sequence[int], like: Tensor, dense: bool = False) -> Tensor:
    draws = _active.get()
    count = 0 if draws is None else len(draws.rows if draws.chosen is None else draws.chosen)
    key = 0 if draws is None else draws.next_key()
    if draws is None or count == 0 or shape[0] % count:
        # outside of numbered, or the first dimension does not hold the examples
        return _filled(fill, shape, like, None)
    each = shape[0] // count  # several of each example, one behind the other
    rows = _rows(draws, key, fill, (each, *shape[1:]), like, dense)
    return (rows if draws.chosen is None else rows[draws.chosen.to(rows.device)]).flatten(0, 1)


def _rows(draws: _Draws, key: int, fill: Fill, shape: tuple[int, ...], like: Tensor, dense: bool) -> Tensor:
    """The numbers of each of ``draws.rows``, of that shape each; ``dense`` blocks have no room for other examples."""
    out = torch.empty((len(draws.rows), *shape), dtype=like.dtype, device=like.device)
    for block, size, own, positions in draws.pieces(dense):
        generator = _seeded(key, block, like.device)
        if own == slice(0, size, 1):
            fill(out[positions], generator)
        else:
            out[positions] = _filled(fill, (size, *shape), like, generator)[own]
    return out


def _shared(fill: Fill, shape: Sequence[int], like: Tensor) -> Tensor:
    draws = _active.get()
    generator = None if draws is None else _seeded(draws.next_key(), 0, like.device)
    return _filled(fill, shape, like, generator)


def _filled(fill: Fill, shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Tensor:
    out = torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
    fill(out, generator)
    return out


def _seeded(key: int, block: int, device: torch.device) -> torch.Generator:
    if device not in _generators:
        _generators[device] = torch.Generator(device)
    return _generators[device].manual_seed(seed(key, block))
