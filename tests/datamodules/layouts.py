"""Small synthetic data sets in the official layouts of files."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image
from torchvision import datasets

import datamodules
from datamodules import cifar10_c, mnist_c
from datamodules.files import ImageFiles

VALIDATION = 4
SIZES = {"train": 16, "test": 6}
RANDOM = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RANDOM.integers(256, size=shape, dtype=np.uint8)


def classes(count: int, num_classes: int = 10) -> np.ndarray:
    return np.arange(count) % num_classes


def idx(values: np.ndarray) -> bytes:
    """The idx format: magic number, sizes, bytes."""
    header = [0x0800 + values.ndim, *values.shape]
    return b"".join(number.to_bytes(4, "big") for number in header) + values.astype(np.uint8).tobytes()


def write_mnist(folder: Path) -> None:
    folder.mkdir(parents=True)
    for part, size in {"train": SIZES["train"], "t10k": SIZES["test"]}.items():
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels(size, 28, 28)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(classes(size, 2)))  # watermarks need zeros and ones


def write_cifar(folder: Path, published: type[datasets.CIFAR10], key: str) -> None:
    folder.mkdir()
    parts = [(name, SIZES["train"] // len(published.train_list)) for name, _ in published.train_list]
    for name, size in [*parts, (published.test_list[0][0], SIZES["test"])]:
        content = {"data": pixels(size, 3072), key: classes(size).tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / published.meta["filename"]).write_bytes(pickle.dumps({published.meta["key"]: []}))


def write_svhn(root: Path) -> None:
    for part, size in {**SIZES, "extra": 5}.items():
        content = {"X": pixels(32, 32, 3, size), "y": classes(size)[:, None] + 1}
        scipy.io.savemat(root / f"{part}_32x32.mat", content)


def write_organ(path: Path) -> None:
    content = {}
    for part, size in (("train", 12), ("val", 4), ("test", 6)):
        content |= {f"{part}_images": pixels(size, 28, 28), f"{part}_labels": classes(size)[:, None].astype(np.uint8)}
    np.savez(path, **content)


def write_mnist_c(folder: Path) -> None:
    for corruption in mnist_c.CORRUPTIONS:
        (folder / corruption).mkdir(parents=True)
        np.save(folder / corruption / "test_images.npy", pixels(SIZES["test"], 28, 28, 1))
        np.save(folder / corruption / "test_labels.npy", classes(SIZES["test"]))


def write_cifar10_c(folder: Path) -> None:
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(classes(SIZES["test"]), 5))
    for corruption in cifar10_c.CORRUPTIONS:
        np.save(folder / f"{corruption}.npy", pixels(5 * SIZES["test"], 32, 32, 3))


def write_tiny_imagenet(folder: Path) -> None:
    names = ["n03", "n01", "n02", "n00"]
    folder.mkdir()
    (folder / "wnids.txt").write_text("\n".join(names) + "\n")
    for name in names:
        images = folder / "train" / name / "images"
        images.mkdir(parents=True)
        for number in range(SIZES["train"] // 4):
            Image.fromarray(np.full((64, 64, 3), 10 * int(name[1:]) + number, np.uint8)).save(
                images / f"{name}_{number}.JPEG"
            )
    images = folder / "val" / "images"
    images.mkdir(parents=True)
    rows = []
    for number in reversed(range(SIZES["test"])):  # the published rows are not sorted
        Image.fromarray(np.full((64, 64), 40 * number, np.uint8)).save(images / f"val_{number}.JPEG")  # grey
        rows.append(f"val_{number}.JPEG\t{names[number % 4]}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(rows))


def write_all(root: Path) -> None:
    """Every data set below ``root``."""
    write_mnist(root / "MNIST" / "raw")
    write_mnist(root / "FashionMNIST" / "raw")
    write_cifar(root / "cifar-10-batches-py", datasets.CIFAR10, "labels")
    write_cifar(root / "cifar-100-python", datasets.CIFAR100, "fine_labels")
    write_svhn(root)
    write_organ(root / "organamnist.npz")
    write_mnist_c(root / "mnist_c")
    write_cifar10_c(root / "CIFAR-10-C")
    write_tiny_imagenet(root / "tiny-imagenet-200")


# data sets, each with one file to damage
FILES: dict[Callable[..., ImageFiles], str] = {
    datamodules.MNIST: "MNIST/raw/train-images-idx3-ubyte",
    datamodules.WatermarkedMNIST: "MNIST/raw/train-images-idx3-ubyte",
    datamodules.FashionMNIST: "FashionMNIST/raw/train-labels-idx1-ubyte",
    datamodules.CIFAR10: "cifar-10-batches-py/data_batch_3",
    datamodules.DoubledCIFAR10: "cifar-10-batches-py/data_batch_3",
    datamodules.CIFAR100: "cifar-100-python/train",
    datamodules.SVHN: "train_32x32.mat",
    datamodules.OrganAMNIST: "organamnist.npz",
    datamodules.TinyImageNet: "tiny-imagenet-200/val/images/val_3.JPEG",
    datamodules.MNISTC: "mnist_c/fog/test_images.npy",
    datamodules.CIFAR10C: "CIFAR-10-C/fog.npy",
}
