"""When one process of a run ends, the others report which one and end too."""

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

_LAUNCHER = "ROBUST_LAUNCHER"  # process id of the command line that starts the other processes
_GRACE = 5.0  # seconds in which a process may end by itself: raise its own error, close its files
_CONNECT_TIMEOUT = 20.0  # seconds
_BYE, _FAILED = b".", b"x"  # the last message of a process; a killed process sends none


def watch_launcher() -> None:
    """End this process when its parent ends, if the parent is a command line on several devices."""
    launcher = int(os.environ.get(_LAUNCHER, 0))
    own = os.getppid() == launcher or not _exists(launcher)  # the launcher may have ended while this process started
    if "LOCAL_RANK" not in os.environ or launcher == 0 or not own:
        os.environ[_LAUNCHER] = str(os.getpid())
        return

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        _report_end(0, int(os.environ["LOCAL_RANK"]))
        time.sleep(_GRACE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="launcher").start()


class Peers(Callback):
    """Ends every process within seconds after another process ends, even while it waits in a collective.

    Process 0 holds a connection to every other process. The operating system closes a connection when its process ends,
    and process 0 informs the others. No traffic goes through the connections until then. This callback does not notice
    when a computer loses power or network; the timeouts of the communication library do.
    """

    def __init__(self) -> None:
        self._connections: _Connections | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Connect the processes."""
        if trainer.world_size > 1 and self._connections is None:
            self._connections = _connect(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Announce that this process no longer needs the others."""
        self._close(_BYE)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Announce that this process ends with an error, after the report on another process that caused it, if any."""
        self._close(_FAILED)

    def _close(self, message: bytes) -> None:
        if self._connections is not None:
            self._connections.close(message)
            self._connections = None


class _Connections:
    """The connections of a process: process 0 has one to every other process, the others one to process 0.

    Args:
        rank: rank of this process.
        peers: sockets by the rank of the process at the other end.
    """

    def __init__(self, rank: int, peers: dict[int, socket.socket]) -> None:
        self._rank, self._peers = rank, peers
        self._closed, self._other_ended = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="peers").start()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    message = _receive(key.fileobj)
                    selector.unregister(key.fileobj)
                    if message != _BYE and not self._closed.is_set():
                        self._end_with(key.data, message)

    def _end_with(self, rank: int, message: bytes) -> None:
        """End this process because another one ended: ``rank``, or the one that its message names."""
        rank = int(message[1:].strip(_BYE + _FAILED)) if message[:1] == b"r" else rank
        if message == _FAILED:  # this process may be about to raise the same error
            self._other_ended.set()
            time.sleep(_GRACE)
        self._send(b"r%d" % rank, [peer for other, peer in self._peers.items() if other != rank])
        if not self._closed.is_set():
            _report_end(rank, self._rank)
            self._other_ended.set()
            time.sleep(_GRACE)
        if not self._closed.is_set():
            os._exit(1)

    def close(self, message: bytes) -> None:
        """Send ``message`` to the others and stop watching."""
        self._send(message, self._peers.values())
        if message == _FAILED:
            self._other_ended.wait(2.0)
        self._closed.set()

    @staticmethod
    def _send(message: bytes, peers: Iterable[socket.socket]) -> None:
        for peer in peers:
            with suppress(OSError):
                peer.sendall(message)


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _receive(peer: Any) -> bytes:
    try:
        message: bytes = peer.recv(16)
    except OSError:
        return b""
    return message


def _connect(trainer: Trainer) -> _Connections | None:
    """The connections of this process, None if any process failed to connect; called in all processes."""
    host = getattr(getattr(trainer.strategy, "cluster_environment", None), "main_address", "127.0.0.1")
    rank, peers, server = trainer.global_rank, {}, None
    if rank == 0:
        server = _listen(host)
    port, token = 0 if server is None else server.getsockname()[1], secrets.token_bytes(16)
    port, token = trainer.strategy.broadcast((port, token))
    try:
        if server is None:
            peers[0] = socket.create_connection((host, port), _CONNECT_TIMEOUT)
            peers[0].sendall(token + rank.to_bytes(4, "big"))
        else:
            peers = _accept(server, token, trainer.world_size - 1)
    except OSError as error:
        failure = str(error)
    else:
        failure = ""
    if not trainer.strategy.reduce_boolean_decision(not failure):
        rank_zero_warn(f"processes are not watched: no connection to {host}:{port} {failure}")
        return None
    for peer in peers.values():
        peer.settimeout(None)
    return _Connections(rank, peers)


def _listen(host: str) -> socket.socket:
    try:
        return socket.create_server((host, 0))
    except OSError:  # the address is not one of this computer's interfaces
        return socket.create_server(("", 0))


def _accept(server: socket.socket, token: bytes, count: int) -> dict[int, socket.socket]:
    """The sockets of ``count`` processes that know the token, by rank."""
    peers: dict[int, socket.socket] = {}
    deadline = time.monotonic() + _CONNECT_TIMEOUT
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


def _report_end(rank: int, own: int) -> None:
    sys.stderr.write(f"error: process {rank} ended; process {own} cannot go on without it, and ends too\n")
    sys.stderr.flush()
