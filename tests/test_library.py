"""What docs/library.md shows runs with torch alone."""

import subprocess
import sys

import pytest

from tests.testers import ROOT

ABSENT = (
    *("pytorch_lightning", "lightning_fabric", "torchmetrics", "jsonargparse", "tensorboard"),
    *("torchvision", "sklearn", "matplotlib", "auto_LiRPA", "pyautoattack"),
)
NEEDS_TORCHMETRICS = "robust.metrics"
PREPARE = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))"  # None there: importing it fails


def run(code):
    return subprocess.run([sys.executable, "-c", f"{PREPARE}\n{code}"], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.thorough
def test_the_page_runs_with_torch_alone():
    done = run(
        "import doctest\n"
        "done = doctest.testfile('docs/library.md', False, optionflags=doctest.ELLIPSIS)\n"
        "print(done.attempted)\n"
        "sys.exit(done.failed)"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 40, "all examples are run"


@pytest.mark.thorough
def test_every_module_but_the_metrics_is_imported_with_torch_alone():
    done = run(
        "import importlib, pkgutil, robust\n"
        "for module in pkgutil.walk_packages(robust.__path__, 'robust.', onerror=lambda name: None):\n"
        f"    if not module.name.startswith('{NEEDS_TORCHMETRICS}'):\n"
        "        importlib.import_module(module.name)\n"
    )
    assert done.returncode == 0, done.stderr
