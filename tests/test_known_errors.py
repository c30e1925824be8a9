"""Errors of libraries that one line explains."""

from cli.known_errors import known_error


def test_a_process_whose_peer_ended_says_so_in_one_line():
    """Regression: after the one-line error of the other process came a hundred lines of traceback, and status 1."""
    message = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:1"
    error = known_error(RuntimeError(message))
    assert str(error) == "processes: got 'a lost connection'; another process has ended; its error is above"
    assert known_error(RuntimeError("anything else")) is None
