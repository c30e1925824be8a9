"""The processes of experiments: several threads start them and wait for their ends."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cli.processes import start, wait_for
from tests.testers import ROOT


def test_the_status_of_a_process_is_right_while_another_thread_starts_one(tmp_path):
    """Regression: a run that ended while another one started counted as failed, with status 255."""
    script = tmp_path / "ends.py"
    script.write_text("import sys\nsys.exit(int(sys.argv[1]))\n")

    def run(number):
        child = start(script, [str(number % 2)], tmp_path / f"{number}.log", 1, tmp_path / f"{number}.lock")
        return wait_for(child)

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(run, range(30)))
    assert statuses == [number % 2 for number in range(30)]


@pytest.mark.thorough
def test_ctrl_c_during_the_imports_of_the_server_prints_no_traceback(tmp_path):
    """Regression: a terminal sends Ctrl-C to the server, too, which printed where in its imports it was."""
    code = """
import sys
from pathlib import Path
from cli.processes import start
print("begins", flush=True)
try:
    start(Path("none.py"), [], Path(sys.argv[1]) / "log", 1, Path(sys.argv[1]) / "lock")
except KeyboardInterrupt:
    sys.exit(130)
"""
    runner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert runner.stdout is not None
    assert runner.stdout.readline() == "begins\n"
    time.sleep(1.5)  # the server's imports take longer
    os.killpg(runner.pid, signal.SIGINT)
    _, errors = runner.communicate(timeout=120)
    assert (runner.returncode, errors) == (130, "")
