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


@pytest.mark.thorough
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
    (tmp_path / "slow_imports.py").write_text(
        "import os, time\nfrom pathlib import Path\n"
        "parent = os.getppid()\nPath(__file__).with_name('reached').touch()\n"
        "while os.getppid() == parent:\n    time.sleep(0.1)\n"
    )
    code = """
import sys
from multiprocessing import get_context
from pathlib import Path
from cli import processes

context = get_context("forkserver")
preload = context.set_forkserver_preload
context.set_forkserver_preload = lambda modules: preload([modules[0], "slow_imports"])
folder = Path(sys.argv[1])
try:
    processes.start(Path("none.py"), [], folder / "log", 1, folder / "lock")
except KeyboardInterrupt:
    sys.exit(130)
"""
    runner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for _ in range(1200):  # a busy machine imports slowly
        if (tmp_path / "reached").exists():
            break
        time.sleep(0.1)
    assert (tmp_path / "reached").exists()
    for _ in range(100):  # one that comes before a read begins is not seen until it ends
        if runner.poll() is not None:
            break
        os.killpg(runner.pid, signal.SIGINT)
        time.sleep(0.5)
    _, errors = runner.communicate(timeout=120)
    assert runner.returncode != 0
    assert "slow_imports" not in errors, "the traceback of the server"
