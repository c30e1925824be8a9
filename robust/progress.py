"""The progress of slow work: loops report it to a watcher, if there is one.

Attacks and evaluations wrap their loops in :func:`tracked`. Nested loops give one fraction: each step of the outer loop
is as long as the whole inner loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")


class _Loop:
    def __init__(self, total: float, covers: float = 1.0) -> None:
        self.total = max(total, 1.0)
        self.covers = covers
        self.done = 0.0


class _Watch:
    """The open loops, the outermost first, and the function that gets the completed fraction."""

    def __init__(self, show: Callable[[float], None], total: float) -> None:
        self.show = show
        self.loops = [_Loop(total)]
        self.largest = 0.0

    def advance(self, count: float) -> None:
        self.loops[-1].done += count
        fraction = 0.0
        for each in reversed(self.loops):
            fraction = min(each.done + fraction, each.total) / each.total * each.covers
        self.largest = max(self.largest, fraction)  # loops that follow each other inside one step start from zero
        self.show(self.largest)


_watch: ContextVar[_Watch | None] = ContextVar("watch", default=None)


def watch(show: Callable[[float], None], total: float = 1.0) -> None:
    """Report the completed fraction from now on, until :func:`unwatch`.

    >>> watch(lambda fraction: print(f"{fraction:.0%}"))
    >>> for _ in tracked(range(2)):
    ...     for _ in tracked(range(2)):
    ...         pass
    25%
    50%
    50%
    75%
    100%
    100%
    >>> unwatch()

    Args:
        show: called with the completed fraction, which never decreases, after each step.
        total: number of steps of the whole work; :func:`advance` outside of all loops completes one.
    """
    _watch.set(_Watch(show, total))


def unwatch() -> None:
    """Report nothing from now on."""
    _watch.set(None)


def advance(count: float = 1.0) -> None:
    """Complete ``count`` steps of the innermost loop."""
    if (current := _watch.get()) is not None:
        current.advance(count)


@contextmanager
def loop(total: float, covers: float = 1.0) -> Iterator[None]:
    """A loop of ``total`` steps, each completed by :func:`advance`; it may end early.

    Args:
        total: number of steps.
        covers: number of steps of the outer loop that it is a part of.
    """
    current = _watch.get()
    if current is None:
        yield
        return
    depth = len(current.loops)
    current.loops.append(_Loop(total, covers))
    try:
        yield
    finally:
        del current.loops[depth:]


def tracked(items: Sequence[Item]) -> Iterator[Item]:
    """The items, each a completed step of a loop as soon as the next one is asked for.

    >>> list(tracked("ab"))  # nobody watches
    ['a', 'b']
    """
    if _watch.get() is None:
        yield from items
        return
    with loop(len(items)):
        for item in items:
            yield item
            advance()
