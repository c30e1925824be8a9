"""Data sets and pseudo-labels with a harmless payload, which must not run when they are read."""

import os
import pickle

import numpy as np
import pytest
import torch

import datamodules
from robust.errors import SettingError
from tests.datamodules import layouts

IMAGES = np.zeros((20, 1, 28, 28), np.uint8)
LABELS = np.arange(20) % 10


def evil(kind, written, payload, root):
    """The data module of a folder in which one file holds the payload."""
    objects = np.empty(layouts.SIZES["test"], dtype=object)
    objects[:] = payload
    if kind is datamodules.TinyImageNet:
        (root / kind.location).mkdir()
        torch.save((torch.zeros(6, 3, 64, 64, dtype=torch.uint8), payload), root / kind.location / "val-decoded.pt")
    elif kind is datamodules.MNISTC:
        for name in datamodules.mnist_c.CORRUPTIONS:
            (root / kind.location / name).mkdir(parents=True)
            np.save(root / kind.location / name / "test_images.npy", objects, allow_pickle=True)
        return kind(root=str(root))
    elif kind is datamodules.OrganAMNIST:
        np.savez(root / kind.location, test_images=objects, test_labels=objects)
    else:
        (root / kind.location).mkdir()
        for file in (written / kind.location).iterdir():
            (root / kind.location / file.name).write_bytes(pickle.dumps({"data": payload, "labels": payload}))
    return kind(root=str(root), verify_checksums=False)


@pytest.mark.filterwarnings("ignore:data.verify_checksums")
@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "DoubledCIFAR10", "OrganAMNIST", "MNISTC", "TinyImageNet"])
def test_data_sets(name, written, payload, environment, tmp_path):
    (tmp_path / "root").mkdir()
    data = evil(getattr(datamodules, name), written, payload, tmp_path / "root")
    with pytest.raises(SettingError, match=r"data.root: got .* is damaged \("):
        data.load("test")


def semi_supervised(path, **settings):
    labelled = datamodules.Digits(batch_size=16)
    return datamodules.SemiSupervised(labelled=labelled, pseudo_labelled=str(path), **settings)


@pytest.mark.parametrize("name", ["code.npz", "code.pickle"])
def test_pseudo_labels(name, payload, tmp_path):
    objects = np.empty(20, dtype=object)
    objects[:] = payload
    if name == "code.npz":
        np.savez(tmp_path / name, image=IMAGES, label=objects)
    else:
        (tmp_path / name).write_bytes(pickle.dumps({"image": IMAGES, "label": LABELS, "more": payload}))
    with pytest.raises(SettingError, match=r"data.pseudo_labelled: got .*; (cannot read it|it names posix.mkdir)"):
        semi_supervised(tmp_path / name).load("train")


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_are_read(protocol, tmp_path):
    order = np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3))
    images = np.random.default_rng(0).integers(256, size=IMAGES.shape, dtype=np.uint8)
    content = {"image": images, "label": LABELS.tolist(), "order": [order, (1.5, b"\xff", "ß")], "one": np.int64(7)}
    (tmp_path / "plain.pickle").write_bytes(pickle.dumps(content, protocol))
    read = datamodules.pickles.read_pickle(tmp_path / "plain.pickle")
    assert np.array_equal(read["image"], images)
    assert np.array_equal(read["order"][0], order)
    assert (read["order"][1], read["one"], read["label"]) == (content["order"][1], 7, content["label"])
    labelled = len(datamodules.Digits().load("train"))
    loaded = semi_supervised(tmp_path / "plain.pickle").load("train")
    assert torch.equal(loaded.pixels(torch.arange(labelled, len(loaded))), torch.from_numpy(images))


def test_a_trusted_pickle_is_read_with_its_code(tmp_path):
    (tmp_path / "code.pickle").write_bytes(pickle.dumps({"image": IMAGES, "label": LABELS, "how": os.getcwd}))
    with pytest.raises(SettingError, match=r"it names posix.getcwd, which could run code; .*data.trust_pickle to true"):
        semi_supervised(tmp_path / "code.pickle").load("train")
    loaded = semi_supervised(tmp_path / "code.pickle", trust_pickle=True).load("train")
    assert torch.equal(loaded.labels[-20:], torch.from_numpy(LABELS))


@pytest.mark.parametrize("kind", [object, np.dtype("V8"), np.dtype([("a", "u1")]), np.dtype("M8[s]")])
def test_pickles_of_other_arrays_are_refused(kind, tmp_path):
    (tmp_path / "other.pickle").write_bytes(pickle.dumps(np.zeros(3, dtype=kind)))
    with pytest.raises((pickle.UnpicklingError, TypeError)):
        datamodules.pickles.read_pickle(tmp_path / "other.pickle")
