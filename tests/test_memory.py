"""Processes of the command line keep freed memory."""

import os
import platform
import subprocess
import sys

import pytest

from tests.testers import ROOT

PROGRAM = """
import resource, sys
import torch
from cli.memory import keep_freed_memory

kept = sys.argv[1] == "keep" and keep_freed_memory()
torch.ones(2**20), torch.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**20), torch.ones(2**23)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep, **variables):
    """Whether the process keeps memory, and its page faults while 20 times 36 MiB are allocated and freed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM, keep]
    out = subprocess.run(command, cwd=ROOT, env=environment | variables, capture_output=True, text=True, check=True)
    kept, count = out.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
class TestKeptMemory:
    def test_it_is_not_cleared_again(self):
        kept, few = faults("keep")
        assert kept
        _, many = faults("default")
        assert few < 0.2 * many

    def test_the_environments_thresholds_come_first(self):
        assert not faults("keep", MALLOC_TRIM_THRESHOLD_="0")[0]
