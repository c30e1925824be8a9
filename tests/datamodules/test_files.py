"""Data sets in files: contents, splits, errors."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torchvision.datasets import utils

import datamodules
from datamodules import CIFAR10, CIFAR10C, CIFAR100, MNISTC, SVHN, FashionMNIST, OrganAMNIST, TinyImageNet
from datamodules.mnist_c import CORRUPTIONS
from robust.errors import SettingError
from tests.datamodules.layouts import FILES

SHARED = Path(__file__).parents[2].parent / "shared"
REAL = Path(os.environ.get("ROBUST_DATA") or SHARED / "data")
needs_fashion = pytest.mark.skipif(not (REAL / "FashionMNIST").is_dir(), reason=f"no FashionMNIST in {REAL}")
UNPACK = SHARED / "tools" / "unpack_cifar10.py"
needs_cifar = pytest.mark.skipif(not UNPACK.exists(), reason=f"no {UNPACK}, which unpacks CIFAR-10 (JPEG)")
unverified = pytest.mark.filterwarnings("ignore:data.verify_checksums")
ALL = list(FILES)
COPIES = (MNISTC, CIFAR10C)  # a test split alone
CHECKSUMMED = [made for made in ALL if made not in (TinyImageNet, *COPIES)]


def make(made, root, **settings):
    """The data module, which accepts small files."""
    return made(root=str(root), **({} if made in COPIES else {"verify_checksums": False}), **settings)


def copied(written, tmp_path):
    """A writable copy of the folder without decoded files."""
    return shutil.copytree(written, tmp_path / "data", ignore=shutil.ignore_patterns("*.pt"))


@unverified
@pytest.mark.parametrize("made", ALL)
def test_every_split_has_the_declared_shape(made, written):
    data = make(made, written)
    for split in ("test",) if made in COPIES else ("train", "val", "test"):
        images = data.images(split)
        assert images.pixels(torch.arange(len(images))).dtype == torch.uint8
        batch = images[torch.arange(len(images))]
        assert batch.images.shape[1:] == data.image_shape
        assert batch.images.dtype == torch.float32
        assert 0 <= batch.images.min() < batch.images.max() <= 1
        assert batch.labels.max() < data.num_classes


@unverified
@pytest.mark.parametrize("made", [made for made in ALL if made not in (OrganAMNIST, *COPIES)])
def test_validation_and_training_images_are_disjoint_and_fixed(made, written):
    data, again = make(made, written, seed=1), make(made, written, seed=2)
    parts = [len(data.images(split)) for split in ("train", "val", "test")]
    total = 15 if made in (CIFAR10, datamodules.DoubledCIFAR10) else 16
    assert parts == [total - 4, 4, 6]
    for split in ("train", "val"):
        assert torch.equal(data.images(split).images, again.images(split).images)
    if not made.__name__.startswith(("Watermarked", "Doubled", "Tiny")):
        both = torch.cat([data.images("train").images, data.images("val").images]).flatten(1)
        assert len(both.unique(dim=0)) == total


@unverified
@pytest.mark.parametrize(
    ("made", "reference"),
    [(CIFAR10, "CIFAR10"), (CIFAR100, "CIFAR100"), (SVHN, "SVHN"), (FashionMNIST, "FashionMNIST")],
)
def test_test_images_are_torchvisions(made, reference, written):
    published = getattr(torchvision.datasets, reference)
    checked = type(reference, (published,), {"_check_integrity": lambda self: True, "_load_meta": lambda self: None})
    which = {"split": "test"} if made is SVHN else {"train": False}
    expected = checked(written, transform=torchvision.transforms.ToTensor(), **which)
    images, labels = make(made, written).images("test")[torch.arange(6)]
    assert torch.equal(images, torch.stack([image for image, _ in expected]))
    assert labels.tolist() == [label for _, label in expected]


@unverified
def test_svhn_extra_images_are_only_for_training(written):
    plain, extra = make(SVHN, written), make(SVHN, written, extra=True)
    assert len(extra.images("train")) == len(plain.images("train")) + 5
    assert torch.equal(extra.images("val").images, plain.images("val").images)
    assert len(extra.images("test")) == 6


def test_mnist_c_is_one_corruption_or_all(written):
    everything = make(MNISTC, written)
    assert len(everything.images("test")) == 15 * 6
    fog = make(MNISTC, written, corruption="fog").images("test")
    start = CORRUPTIONS.index("fog") * 6
    assert torch.equal(everything.images("test").images[start : start + 6], fog.images)
    with pytest.raises(SettingError, match="train and validate on MNIST"):
        everything.images("train")
    with pytest.raises(SettingError, match=r"data\.corruption: got 'rain'.*fog"):
        MNISTC(corruption="rain")


def test_cifar10_c_is_one_corruption_of_one_severity_or_all(written):
    everything = make(CIFAR10C, written)
    assert len(everything.images("test")) == 15 * 5 * 6
    assert list(everything.groups)[:6] == [*(f"gaussian_noise_{severity}" for severity in range(1, 6)), "shot_noise_1"]
    array = np.load(written / "CIFAR-10-C" / "fog.npy")
    data = make(CIFAR10C, written, corruption="fog", severity=4)
    assert data.groups == {"fog_4": 6}
    images, labels = data.images("test").raw(torch.tensor([5, 0]))
    assert torch.equal(images, torch.from_numpy(array[[3 * 6 + 5, 3 * 6]]).movedim(-1, 1))
    assert labels.tolist() == [5, 0]
    start = list(everything.groups).index("fog_4") * 6
    assert torch.equal(everything.images("test").pixels(torch.tensor([start])), images[1:])
    with pytest.raises(SettingError, match="train and validate on CIFAR10"):
        everything.images("val")
    with pytest.raises(SettingError, match=r"data\.corruption: got 'rain'.*fog"):
        CIFAR10C(corruption="rain")
    with pytest.raises(SettingError, match=r"data\.severity: got 6; give 1 to 5"):
        CIFAR10C(severity=6)


def test_tiny_imagenet_sorts_classes_and_test_images_by_name(written, tmp_path):
    root = copied(written, tmp_path)
    data = TinyImageNet(root=str(root))
    data.prepare_data()
    assert sorted(path.name for path in (root / "tiny-imagenet-200").glob("*.pt")) == [
        "train-decoded.pt",
        "val-decoded.pt",
    ]
    test = data.images("test")
    assert test.labels.tolist() == [3, 1, 2, 0, 3, 1]  # n03 n01 n02 n00 by the annotations
    assert test.images[:, :, 0, 0].tolist() == [[40 * number] * 3 for number in range(6)]
    train = torch.cat([data.images("train").images, data.images("val").images])[:, 0, 0, 0]
    labels = torch.cat([data.images("train").labels, data.images("val").labels])
    assert torch.equal(train // 10, labels.to(torch.uint8))
    shutil.rmtree(root / "tiny-imagenet-200" / "train")
    shutil.rmtree(root / "tiny-imagenet-200" / "val")
    decoded = TinyImageNet(root=str(root)).images("train")
    assert torch.equal(decoded.images, data.images("train").images)


@pytest.mark.parametrize("made", ALL)
def test_absent_files_name_url_path_and_remedies(made, tmp_path):
    data = made(root=str(tmp_path))
    with pytest.raises(SettingError, match=r"^data\.root: got .*--data\.download true") as caught:
        data.images("test")
    message = str(caught.value)
    assert "\n" not in message
    assert data.url in message
    assert str(tmp_path) in message
    assert "ROBUST_DATA" in message


@pytest.mark.parametrize("made", CHECKSUMMED)
def test_another_checksum_is_refused(made, written):
    with pytest.raises(
        SettingError, match=r"^data\.root: .* is damaged \((checksum|.*bytes instead).*delete it"
    ) as caught:
        made(root=str(written)).images("train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("made", CHECKSUMMED)
def test_unverified_files_are_read_with_a_warning(made, written):
    with pytest.warns(UserWarning, match=r"data\.verify_checksums: false accepts .*not comparable"):
        make(made, written).images("train")


@unverified
@pytest.mark.parametrize("made", ALL)
def test_truncated_file(made, written, tmp_path):
    root = copied(written, tmp_path)
    path = root / FILES[made]
    # a decoder may complete a truncated picture, so this removes all of it
    path.write_bytes(b"" if made is TinyImageNet else path.read_bytes()[:-30])
    data = make(made, root)
    split = "test" if made in (*COPIES, TinyImageNet) else "train"
    # torchvision reads all files of CIFAR at once
    named = path.parent.name if issubclass(made, CIFAR10) else path.name
    with pytest.raises(SettingError, match=rf"^data\.root: .*{named}.* is damaged .*delete it") as caught:
        data.images(split)
    assert "\n" not in str(caught.value)


@unverified
def test_wrong_contents(written, tmp_path):
    root = copied(written, tmp_path)
    (root / "tiny-imagenet-200" / "train" / "n01" / "images" / "n01_0.JPEG").unlink()
    with pytest.raises(SettingError, match="15 images instead of 16"):
        TinyImageNet(root=str(root)).images("train")
    np.save(root / "mnist_c" / "fog" / "test_labels.npy", np.arange(5))
    with pytest.raises(SettingError, match="5 entries instead of 6"):
        MNISTC(root=str(root)).images("test")
    np.save(root / "mnist_c" / "fog" / "test_labels.npy", np.arange(5, 11))
    with pytest.raises(SettingError, match=r"labels: got \(5, 10\); give classes from 0 to 9"):
        MNISTC(root=str(root), corruption="fog").images("test")
    for name, array, message in (
        ("fog", np.zeros((30, 32, 32), np.uint8), r"shape \(30, 32, 32\) instead of \(30, 32, 32, 3\)"),
        ("fog", np.zeros((30, 32, 32, 3)), "float64 instead of uint8"),
        ("labels", np.arange(6), r"shape \(6,\) instead of \(30,\)"),
        ("labels", np.arange(30), "labels from 0 to 29, not from 0 to 9"),
    ):
        np.save(root / "CIFAR-10-C" / f"{name}.npy", array)
        with pytest.raises(SettingError, match=rf"{name}.npy is damaged \({message}\)"):
            CIFAR10C(root=str(root)).images("test")
    content = {"test_images": np.zeros((2, 30, 28), np.uint8), "test_labels": np.zeros((2, 1), np.uint8)}
    np.savez(root / "organamnist.npz", **content)
    with pytest.raises(SettingError, match=r"\(1, 30, 28\).*\(1, 28, 28\)"):
        make(OrganAMNIST, root).images("test")


@pytest.mark.parametrize("made", ALL)
def test_failed_download(made, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise RuntimeError("no\nnetwork")

    for module in (utils, torchvision.datasets.cifar, torchvision.datasets.mnist, torchvision.datasets.svhn):
        for name in ("download_and_extract_archive", "download_url"):
            monkeypatch.setattr(module, name, refuse, raising=False)
    with pytest.raises(SettingError, match=r"data\.root: .*the download failed \(.*put the files there") as caught:
        made(root=str(tmp_path), download=True).prepare_data()
    assert "\n" not in str(caught.value)


@needs_fashion
def test_published_counts_of_fashion_mnist():
    data = FashionMNIST(root=str(REAL))
    labels = [data.images(split).labels for split in ("train", "val", "test")]
    assert [len(part) for part in labels] == [55_000, 5_000, 10_000]
    assert torch.cat(labels[:2]).bincount().tolist() == [6_000] * 10
    assert labels[2].bincount().tolist() == [1_000] * 10


@pytest.mark.slow
@needs_cifar
@unverified
def test_published_counts_of_cifar10(tmp_path):
    subprocess.run([sys.executable, str(UNPACK), str(tmp_path)], check=True, capture_output=True)
    with pytest.raises(SettingError, match="is damaged"):
        CIFAR10(root=str(tmp_path)).images("test")
    data = CIFAR10(root=str(tmp_path), verify_checksums=False)
    labels = [data.images(split).labels for split in ("train", "val", "test")]
    assert [len(part) for part in labels] == [45_000, 5_000, 10_000]
    assert torch.cat(labels[:2]).bincount().tolist() == [5_000] * 10
    assert labels[2].bincount().tolist() == [1_000] * 10
    exact = REAL / "cifar10-lossless-part" / "cifar10_lossless_part.npz"
    if exact.exists():
        with np.load(exact) as file:
            original = torch.from_numpy(file["test_x"]).movedim(-1, 1).float()
        difference = (data.images("test").images[: len(original)].float() - original).abs().mean()
        assert difference < 8  # of 255: the same pictures, order and channels
