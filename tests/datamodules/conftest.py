"""Folders of small files in the official layouts."""

import pytest

import datamodules
import datamodules.files
import datamodules.mnist
from tests.datamodules import layouts


@pytest.fixture(scope="session")
def _written(tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    layouts.write_all(root)
    return root


@pytest.fixture
def small(monkeypatch):
    """Sizes as those of the small files."""
    for module in (datamodules.files, datamodules.mnist):
        monkeypatch.setattr(module, "VALIDATION_IMAGES", layouts.VALIDATION)
    monkeypatch.setattr(datamodules.TinyImageNet, "sizes", (layouts.SIZES["train"], layouts.SIZES["test"]))
    monkeypatch.setattr(datamodules.TinyImageNet, "num_classes", 4)
    monkeypatch.setattr(datamodules.MNISTC, "images_each", layouts.SIZES["test"])


@pytest.fixture
def written(_written, small):
    """Folder with every data set, not to be written to."""
    return _written
