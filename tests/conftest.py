"""Fixtures of all tests.

They pass on every processor. To test with the instructions of another one, or with more threads::

    ATEN_CPU_CAPABILITY=avx2 DNNL_MAX_CPU_ISA=AVX2 pytest
    ATEN_CPU_CAPABILITY=default DNNL_MAX_CPU_ISA=SSE41 pytest
    ROBUST_TEST_THREADS=2 pytest -n 1
"""

import gc
import os
import pickle
import sys
from pathlib import Path

import pytest

# One thread, since two workers share two cores; child processes inherit it. Set it to test with more threads.
os.environ["OMP_NUM_THREADS"] = os.environ.get("ROBUST_TEST_THREADS", "1")

# Workers keep freed memory, in place of giving it back and clearing it again: 3 % of the CPU time of tests/robust.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**28))
os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**30))

ROOT = Path(__file__).parents[1]

# Fixtures import torch and ours, which takes seconds: the process that starts the workers needs neither.


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark as thorough the cases that ``thorough_but`` does not name."""
    for item in items:
        if (marker := item.get_closest_marker("thorough_but")) is not None and item.callspec.id not in marker.args:
            item.add_marker(pytest.mark.thorough)


@pytest.fixture(scope="session", autouse=True)
def session():
    """Threads, rare garbage collection, a quick command line, no arguments of pytest's, of which LightningCLI warns."""
    import torch

    from tests import quick_command_line

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    gc.set_threshold(50_000, 20, 50)  # each collection walks through all objects of torch and Lightning
    quick_command_line.install()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py"])
        patch.setattr(os, "fsync", lambda _: None)  # no test ends in a crash of the machine
        before = set(ROOT.iterdir())
        yield
        new = {path.name for path in set(ROOT.iterdir()) - before if not path.name.startswith(".")}
        assert not new, "tests write to their temporary folders"


@pytest.fixture(autouse=True)
def path():
    """No test imports from the folder of another: a command line adds that of its files."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(autouse=True)
def seed():
    """The same draws in every run, whichever tests a worker ran before."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def mnist_root():
    """Folder of the published MNIST files; tests that need them are skipped if they are absent."""
    root = Path(os.environ.get("ROBUST_DATA") or ROOT.parent / "shared" / "data")
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST/raw in {root}; set ROBUST_DATA")
    return root


@pytest.fixture(scope="session")
def _written(tmp_path_factory):
    from tests.datamodules import layouts

    root = tmp_path_factory.mktemp("layouts")
    layouts.write_all(root)
    return root


@pytest.fixture
def small(monkeypatch):
    """Sizes as those of the small files."""
    import datamodules
    import datamodules.files
    import datamodules.mnist
    from datamodules.corrupted import CorruptedCopies
    from tests.datamodules import layouts

    for module in (datamodules.files, datamodules.mnist):
        monkeypatch.setattr(module, "VALIDATION_IMAGES", layouts.VALIDATION)
    monkeypatch.setattr(datamodules.TinyImageNet, "sizes", (layouts.SIZES["train"], layouts.SIZES["test"]))
    monkeypatch.setattr(datamodules.TinyImageNet, "num_classes", 4)
    monkeypatch.setattr(CorruptedCopies, "images_per_group", layouts.SIZES["test"])


@pytest.fixture
def written(_written, small):
    """Folder with every data set; tests must not write to it."""
    return _written


@pytest.fixture
def payload(tmp_path):
    """It is live, and has not run when the test is over."""
    from tests.payload import Payload

    live = tmp_path / "live"
    pickle.loads(pickle.dumps(Payload(live)))
    assert live.is_dir()
    marker = tmp_path / "it-ran"
    yield Payload(marker)
    assert not marker.exists()


@pytest.fixture(params=[None, "1"], ids=["", "weights_only switched off"])
def environment(request, monkeypatch):
    """Torch's own variable that lets it read anything."""
    if request.param:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", request.param)
