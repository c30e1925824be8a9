"""MNIST: the published data if it is present, and small synthetic files for errors."""

import gzip
import hashlib
import os
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
import torchvision

from datamodules import MNIST
from robust.errors import SettingError

REAL = Path(os.environ.get("ROBUST_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
needs_files = pytest.mark.skipif(
    not (REAL / "MNIST" / "raw").is_dir(), reason=f"no MNIST/raw in {REAL}; set ROBUST_DATA"
)


def idx(values):
    """The idx format: magic number, sizes, bytes."""
    header = [0x0800 + values.ndim, *values.shape]
    return b"".join(number.to_bytes(4, "big") for number in header) + bytes(values.flatten().tolist())


@pytest.fixture
def contents(monkeypatch):
    """Small files that MNIST accepts as the published ones: 5,003 training and 4 test images."""
    generator = torch.Generator().manual_seed(0)
    files = {}
    for part, size in {"train": 5003, "t10k": 4}.items():
        images = torch.randint(256, (size, 28, 28), dtype=torch.uint8, generator=generator)
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx(torch.arange(size) % 10)
    checks = {name: (len(data), hashlib.md5(data).hexdigest()) for name, data in files.items()}
    monkeypatch.setattr(MNIST, "files", checks)
    return files


@pytest.fixture
def root(contents, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, data in contents.items():
        (raw / name).write_bytes(data)
    return tmp_path


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(contents, tmp_path, monkeypatch):
    """A folder of packed files, served instead of torchvision's mirrors."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    resources = []
    for name, data in contents.items():
        packed = gzip.compress(data, mtime=0)
        (folder / f"{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    Thread(target=server.serve_forever, daemon=True).start()
    yield folder
    server.shutdown()
    server.server_close()


@needs_files
def test_published_counts():
    mnist = MNIST(root=str(REAL))
    mnist.setup("fit")
    mnist.setup("test")
    parts = [mnist.images(split).labels for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [55_000, 5_000, 10_000]
    both = torch.cat(parts[:2])
    assert both.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert parts[2].bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@needs_files
def test_pixels_are_torchvisions():
    mnist = MNIST(root=str(REAL))
    scale = torchvision.transforms.ToTensor()
    for split, train, offset in (("train", True, 0), ("val", True, 55_000), ("test", False, 0)):
        reference = torchvision.datasets.MNIST(str(REAL), train=train, transform=scale)
        indices = [0, 1, 777, len(mnist.images(split)) - 1]
        images, labels = mnist.images(split)[indices]
        expected = [reference[offset + i] for i in indices]
        assert torch.equal(images, torch.stack([image for image, _ in expected]))
        assert labels.tolist() == [label for _, label in expected]


def test_validation_is_the_last_5000(root, contents):
    mnist = MNIST(root=str(root))
    mnist.setup("fit")
    assert [len(mnist.images(split)) for split in ("train", "val", "test")] == [3, 5000, 4]
    pixels = torch.cat([mnist.images("train").images, mnist.images("val").images]).flatten()
    assert bytes(pixels.tolist()) == contents["train-images-idx3-ubyte"][16:]


def test_stage_reads_only_what_it_needs(root):
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (root / "MNIST" / "raw" / name).unlink()
    MNIST(root=str(root)).setup("test")


def test_root_from_the_environment(root, monkeypatch):
    monkeypatch.setenv("ROBUST_DATA", str(root))
    assert MNIST().root == str(root)
    assert MNIST(root="elsewhere").root == "elsewhere"
    monkeypatch.delenv("ROBUST_DATA")
    assert MNIST().root == "data"


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_absent_file_names_the_remedies(root, name):
    (root / "MNIST" / "raw" / name).unlink()
    with pytest.raises(SettingError, match=rf"^data\.root: .*{name}.*--data\.download true.*ROBUST_DATA") as caught:
        MNIST(root=str(root)).setup("fit")
    assert "\n" not in str(caught.value)


def truncated(data):
    return data[:-100]


def with_wrong_magic(data):
    return b"\0\0\x09" + data[3:]


def with_one_bit_flipped(data):
    return data[:50] + bytes([data[50] ^ 1]) + data[51:]


@pytest.mark.parametrize("damage", [truncated, with_wrong_magic, with_one_bit_flipped])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_damaged_file(root, name, damage):
    path = root / "MNIST" / "raw" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SettingError, match=rf"^data\.root: .*{name} is damaged.*delete it.*--data\.download true"):
        MNIST(root=str(root)).setup("fit")


def test_download(mirror, tmp_path):
    absent = MNIST(root=str(tmp_path / "new"))
    absent.prepare_data()
    with pytest.raises(SettingError, match=r"--data\.download true"):
        absent.setup("fit")
    asked = MNIST(root=str(tmp_path / "new"), download=True)
    asked.prepare_data()
    asked.setup("fit")
    assert len(asked.images("train")) == 3


def test_failed_download(mirror, tmp_path):
    (mirror / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(SettingError, match=r"^data\.root: .*the download failed \(Error downloading t10k") as caught:
        MNIST(root=str(tmp_path / "new"), download=True).prepare_data()
    assert "\n" not in str(caught.value)


def test_unwritable_folder(mirror, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match="the download failed"):
        MNIST(root=str(tmp_path / "file"), download=True).prepare_data()
