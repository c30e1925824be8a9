"""The end of a process that others wait for: they say which it was, and end too."""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn

_LAUNCHER = "ROBUST_LAUNCHER"  # process id of the command line that starts others
_GRACE = 5.0  # seconds for a process to end by itself, with an error of its own or by closing its files
_CONNECTING = 20.0  # seconds
_BYE, _FAILED = b".", b"x"  # what a process says last; a killed one says nothing


def watch_launcher() -> None:
    """End this process when the one that started it ends, if that is a command line on several devices."""
    launcher = int(os.environ.get(_LAUNCHER, 0))
    own = os.getppid() == launcher or not _exists(launcher)  # it may have ended while this process started
    if "LOCAL_RANK" not in os.environ or launcher == 0 or not own:
        os.environ[_LAUNCHER] = str(os.getpid())
        return

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        _say(0, int(os.environ["LOCAL_RANK"]))
        time.sleep(_GRACE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="launcher").start()


class Peers(Callback):
    """Ends every process within seconds of the end of another one, whatever they wait for.

    The first process holds a connection to each of the others; the system closes it when a process ends, and the first
    tells the others. No traffic goes through it meanwhile. A computer that loses its power or its network is not
    noticed; for this there are the timeouts of the communication itself.
    """

    def __init__(self) -> None:
        self._line: _Line | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Connect the processes."""
        if trainer.world_size > 1 and self._line is None:
            self._line = _connected(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say that this process needs the others no more."""
        self._close(_BYE)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say that this process ends with an error; if another one's end is the cause, let that be said first."""
        self._close(_FAILED)

    def _close(self, word: bytes) -> None:
        if self._line is not None:
            self._line.close(word)
            self._line = None


class _Line:
    """The connections of a process: of the first one to all others, of those to the first.

    Args:
        rank: of this process.
        peers: sockets by the rank of the process at the other end.
    """

    def __init__(self, rank: int, peers: dict[int, socket.socket]) -> None:
        self._rank, self._peers = rank, peers
        self._closed, self._news = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="peers").start()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    word = _received(key.fileobj)
                    selector.unregister(key.fileobj)
                    if word != _BYE and not self._closed.is_set():
                        self._lost(key.data, word)

    def _lost(self, rank: int, word: bytes) -> None:
        """End this process, for another one has; it may have told of a third."""
        rank = int(word[1:].strip(_BYE + _FAILED)) if word[:1] == b"r" else rank
        if word == _FAILED:  # this process may be about to say the same error
            self._news.set()
            time.sleep(_GRACE)
        self._tell(b"r%d" % rank, [peer for other, peer in self._peers.items() if other != rank])
        if not self._closed.is_set():
            _say(rank, self._rank)
            self._news.set()
            time.sleep(_GRACE)
        if not self._closed.is_set():
            os._exit(1)

    def close(self, word: bytes) -> None:
        """Say ``word`` to the others and watch no more."""
        self._tell(word, self._peers.values())
        if word == _FAILED:
            self._news.wait(2.0)
        self._closed.set()

    @staticmethod
    def _tell(word: bytes, peers: Iterable[socket.socket]) -> None:
        for peer in peers:
            with suppress(OSError):
                peer.sendall(word)


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _received(peer: Any) -> bytes:
    try:
        word: bytes = peer.recv(16)
    except OSError:
        return b""
    return word


def _connected(trainer: Trainer) -> _Line | None:
    """The line of this process, or none if some could not be connected; called in all processes."""
    host = getattr(getattr(trainer.strategy, "cluster_environment", None), "main_address", "127.0.0.1")
    rank, peers, server = trainer.global_rank, {}, None
    if rank == 0:
        server = _listening(host)
    port, token = 0 if server is None else server.getsockname()[1], secrets.token_bytes(16)
    port, token = trainer.strategy.broadcast((port, token))
    try:
        if server is None:
            peers[0] = socket.create_connection((host, port), _CONNECTING)
            peers[0].sendall(token + rank.to_bytes(4, "big"))
        else:
            peers = _accepted(server, token, trainer.world_size - 1)
    except OSError as error:
        trouble = str(error)
    else:
        trouble = ""
    if not trainer.strategy.reduce_boolean_decision(not trouble):
        rank_zero_warn(f"processes are not watched: no connection to {host}:{port} {trouble}")
        return None
    for peer in peers.values():
        peer.settimeout(None)
    return _Line(rank, peers)


def _listening(host: str) -> socket.socket:
    try:
        return socket.create_server((host, 0))
    except OSError:  # the address is not this computer's own name of itself
        return socket.create_server(("", 0))


def _accepted(server: socket.socket, token: bytes, count: int) -> dict[int, socket.socket]:
    """The sockets of ``count`` processes that know the token, by rank."""
    peers: dict[int, socket.socket] = {}
    deadline = time.monotonic() + _CONNECTING
    with server:
        while len(peers) < count:
            server.settimeout(max(deadline - time.monotonic(), 0.1))
            peer, _ = server.accept()
            peer.settimeout(1.0)
            with suppress(OSError):
                greeting = peer.recv(20, socket.MSG_WAITALL)
                if greeting[:-4] == token:
                    peers[int.from_bytes(greeting[-4:], "big")] = peer
                    continue
            peer.close()
    return peers


def _say(rank: int, own: int) -> None:
    sys.stderr.write(f"error: process {rank} ended; process {own} cannot go on without it, and ends too\n")
    sys.stderr.flush()
