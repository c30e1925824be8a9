"""Ignores Ctrl-C in the server from which processes are forked, before its imports, which take seconds.

The server imports this module first. The runner handles Ctrl-C, which a terminal sends to the server, too; without this
the server would print where in its imports it was.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
