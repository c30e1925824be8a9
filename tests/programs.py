"""``python train.py ...`` as users call it, in a process that is forked with the imports, which take seconds."""

import importlib
import os
import runpy
import sys
from pathlib import Path

from tests.two_processes import ROOT, forkserver


class Program:
    """A running ``train.py``, or another script beside it.

    Args:
        arguments: of the command line.
        folder: where it is called; standard output and error are written beside it.
        before: called first, in the process.
        script: name of the script.
    """

    def __init__(self, arguments, folder, before=None, script="train"):
        self.output = [Path(f"{folder}.{name}") for name in ("out", "err")]
        target = (script, arguments, str(folder), [str(path) for path in self.output], before)
        self.process = forkserver().Process(target=_main, args=target, daemon=True)
        self.process.start()

    @property
    def stderr(self):
        return self.output[1].read_text()

    def wait(self, seconds=120):
        """The status with which it ends."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"no end after {seconds} seconds: {self.stderr}")
        return self.process.exitcode


def _main(script, arguments, folder, output, before):
    os.chdir(folder)
    for descriptor, path in enumerate(output, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv = [str(Path(ROOT) / f"{script}.py"), *arguments]
    sys.path[:] = [ROOT, *(path for path in sys.path if path not in ("", ROOT))]  # as Python does for a script
    if before is not None:
        before()
    if script == "train":
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        importlib.import_module(script).main(arguments)
