"""Each config of configs/data after the quickstart: training and testing for some steps, on the command line."""

from pathlib import Path

import numpy as np
import pytest

import train
from datamodules import MNIST, FashionMNIST, WatermarkedMNIST
from tests.testers import results_in

CONFIGS = Path(__file__).parents[2] / "configs"
SHAPES = {  # number of classes and image shape
    "digits": (10, (1, 28, 28)),
    "watermarked_digits": (20, (1, 28, 28)),
    "doubled_digits": (10, (3, 32, 56)),
    "mnist": (10, (1, 28, 28)),
    "fashion_mnist": (10, (1, 28, 28)),
    "watermarked_mnist": (20, (1, 28, 28)),
    "organ_a_mnist": (11, (1, 28, 28)),
    "mnist_c": (10, (1, 28, 28)),
    "cifar10_c": (10, (3, 32, 32)),
    "cifar10": (10, (3, 32, 32)),
    "cifar10_semi_supervised": (10, (3, 32, 32)),
    "cifar100": (100, (3, 32, 32)),
    "svhn": (10, (3, 32, 32)),
    "doubled_cifar10": (10, (3, 36, 64)),
    "tiny_imagenet": (4, (3, 64, 64)),
}
pytestmark = pytest.mark.filterwarnings("ignore:epsilon_schedule.length")  # of one epoch
ON_DISK = [name for name in SHAPES if "digits" not in name]


def command(name, folder, root=None):
    num_classes, shape = SHAPES[name]
    prefix = "--data.labelled." if "semi_supervised" in name else "--data."
    arguments = [
        "test" if name.endswith("_c") else "fit",
        f"--config={CONFIGS / 'quickstart.yaml'}",
        f"--config={CONFIGS / 'data' / name}.yaml",
        f"--model.classifier.image_shape={list(shape)}",
        f"--model.classifier.num_classes={num_classes}",
        f"--model.generator.channels={shape[0]}",
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1",
        "--trainer.limit_test_batches=1",
        "--trainer.log_every_n_steps=1",
        "--trainer.callbacks=null",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={folder}",
    ]
    if root is not None:
        arguments.append(f"{prefix}root={root}")
        arguments += [] if name.endswith("_c") else [f"{prefix}verify_checksums=false", f"{prefix}batch_size=4"]
    return arguments


def test_there_is_a_test_for_each_config():
    assert sorted(SHAPES) == sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml"))


@pytest.mark.thorough_but("mnist-MNIST")
@pytest.mark.parametrize(
    ("name", "kind"), [("mnist", MNIST), ("fashion_mnist", FashionMNIST), ("watermarked_mnist", WatermarkedMNIST)]
)
def test_runs_on_the_published_files(name, kind, tmp_path, mnist_root):
    if not (mnist_root / "FashionMNIST").is_dir():
        pytest.skip(f"no FashionMNIST in {mnist_root}")
    train.main([*command(name, tmp_path), f"--data.root={mnist_root}"])
    (record,) = tmp_path.glob("lightning_logs/*/results.json")
    data = kind(root=str(mnist_root), batch_size=256 if name == "watermarked_mnist" else 128)
    assert [len(data.load(split)) for split in ("train", "val", "test")] == [55_000, 5_000, 10_000]
    assert results_in(record)["samples"] == {"train": 2 * data.batch_size, "val": 256, "test": 256}


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:data.verify_checksums", "ignore:ckpt_path. got None")
@pytest.mark.parametrize("name", SHAPES)
def test_runs_from_its_config(name, tmp_path, request):
    written = request.getfixturevalue("written") if name in ON_DISK else None
    arguments = command(name, tmp_path, written)
    if name == "cifar10_semi_supervised":
        np.savez(tmp_path / "more.npz", image=np.zeros((9, 32, 32, 3), np.uint8), label=np.zeros(9, np.int64))
        arguments.append(f"--data.pseudo_labelled={tmp_path / 'more.npz'}")
    train.main(arguments)
    (record,) = tmp_path.glob("lightning_logs/*/results.json")
    assert 0 <= results_in(record)["metrics"]["test/accuracy/clean"] <= 1
