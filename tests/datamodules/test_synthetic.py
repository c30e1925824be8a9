"""Watermarked and doubled images: their construction, and the dependence of the label on it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datamodules import MNIST, CropAndFlip, Digits, DoubledDigits, WatermarkedDigits, WatermarkedMNIST
from datamodules.doubled import BORDER, double
from datamodules.loading import seeded
from datamodules.watermarked import watermark
from robust.errors import SettingError

REAL = Path(os.environ.get("ROBUST_DATA") or Path(__file__).parents[2].parent / "shared" / "data")
needs_mnist = pytest.mark.skipif(not (REAL / "MNIST" / "raw").is_dir(), reason=f"no MNIST/raw in {REAL}")


def generator():
    return torch.Generator().manual_seed(0)


def test_a_watermark_is_a_shrunk_digit_of_its_class_at_an_edge():
    """Here brightness distinguishes the digits 0 and 1; the rest of the image is black."""
    images = torch.zeros(400, 1, 28, 28, dtype=torch.uint8)
    digits = torch.arange(400) % 4
    images[digits == 0], images[digits == 1] = 100, 200
    made = watermark(images[digits >= 0], digits, generator())
    black = digits >= 2
    drawn = made.labels // 10
    assert torch.equal(made.labels % 10, digits)
    for index in black.nonzero().squeeze(1).tolist():
        row, column = int(made.rows[index]), int(made.columns[index])
        assert column in (0, 20)
        expected = torch.zeros(28, 28, dtype=torch.uint8)
        expected[row : row + 8, column : column + 8] = (30, 60)[int(drawn[index])]
        assert torch.equal(made.images[index, 0], expected)
    assert set(made.rows.tolist()) == set(range(21))
    for choices in (drawn, made.columns // 20):
        assert abs(choices.float().mean() - 0.5) < 0.1


def test_watermark_pixels_are_those_of_pils_bilinear_resize():
    from PIL import Image

    source = torch.randint(256, (1, 1, 28, 28), dtype=torch.uint8, generator=generator())
    images = torch.cat([source, torch.zeros(49, 1, 28, 28, dtype=torch.uint8)])
    made = watermark(images, torch.tensor([0] + [1] * 49), generator())
    index = int((made.labels[1:] // 10 == 0).nonzero()[0]) + 1
    row, column = int(made.rows[index]), int(made.columns[index])
    small = Image.fromarray(source[0, 0].numpy()).resize((12, 12), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(small)).float()[2:10, 2:10] * 0.3
    pixels = made.images[index, 0, row : row + 8, column : column + 8].float()
    assert (pixels - expected).abs().max() <= 1


def test_compositing():
    images = torch.full((200, 1, 28, 28), 50, dtype=torch.uint8)
    images[0], images[1] = 255, 255
    digits = torch.tensor([0, 1] + [5] * 198)
    brightest = watermark(images, digits, generator(), "max").images[2:]
    added = watermark(images, digits, generator(), "add").images
    assert set(brightest.unique().tolist()) == {50, 77}  # 0.3 * 255 = 76.5
    assert set(added[2:].unique().tolist()) == {50, 127}
    assert added[:2].min() == 255  # cut at 1


@pytest.mark.parametrize("made", [WatermarkedDigits, DoubledDigits])
def test_the_data_set_is_fixed_by_its_own_seed(made):
    name = "watermark_seed" if made is WatermarkedDigits else "pairing_seed"
    one, same, other = made(seed=1), made(seed=2), made(**{name: 1})
    for split in ("train", "val", "test"):
        assert torch.equal(one.images(split).images, same.images(split).images)
        assert not torch.equal(one.images(split).images, other.images(split).images)
    with pytest.raises(SettingError, match=rf"data\.{name}: got -1"):
        made(**{name: -1})


def test_wrong_settings():
    with pytest.raises(SettingError, match=r"data\.compositing: got 'blend'; give max or add"):
        WatermarkedDigits(compositing="blend")
    with pytest.raises(SettingError, match=r"data\.pairing: got 'all'; give permutation or independent"):
        DoubledDigits(pairing="all")
    with pytest.raises(SettingError, match="watermarks need images of the digit 1"):
        watermark(torch.zeros(3, 1, 28, 28, dtype=torch.uint8), torch.zeros(3).long(), generator())
    with pytest.raises(SettingError, match=r"data\.augmentation\.flip: .*swap the two sides"):
        DoubledDigits(augmentation=CropAndFlip())


@pytest.mark.parametrize("pairing", ["permutation", "independent"])
def test_doubled_images_are_two_images_and_a_border(pairing):
    images = torch.arange(30, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 6, 5)
    doubled, labels = double(images, torch.arange(30), generator(), pairing)
    assert doubled.shape == (30, 3, 10, 10)
    border, left, right = doubled[:, :, :BORDER], doubled[:, :, BORDER:, :5], doubled[:, :, BORDER:, 5:]
    red, green = (torch.tensor(colour).view(1, 3, 1, 1) for colour in ([255, 0, 0], [0, 255, 0]))
    is_red = (border == red).flatten(1).all(1)
    assert torch.equal(is_red, ~(border == green).flatten(1).all(1))
    assert 5 < is_red.sum() < 25
    assert torch.equal(labels, torch.where(is_red, left[:, 0, 0, 0], right[:, 0, 0, 0]).long())
    for side in (left, right):
        assert (side == side[:, :1, :1, :1]).all()
        assert (len(side[:, 0, 0, 0].unique()) == 30) is (pairing == "permutation")


def learn(data, network, epochs, rate=2e-3):
    """Train a plain classifier; return its accuracy as a function of validation images."""
    torch.manual_seed(0)
    train = data.images("train")
    network(train[torch.arange(2)].images)  # initialises lazy layers
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    for _ in range(epochs):
        for indices in torch.randperm(len(train)).split(64):
            images, labels = train[indices]
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()

    @torch.no_grad()
    def accuracy(images, labels):
        network.eval()
        return (network(images).argmax(1) == labels).float().mean().item()

    return accuracy


def convolutional(num_classes):
    return nn.Sequential(
        nn.LazyConv2d(16, 5, stride=2),
        nn.ReLU(),
        nn.LazyConv2d(32, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(128),
        nn.ReLU(),
        nn.LazyLinear(num_classes),
    )


@pytest.mark.slow
@needs_mnist
def test_the_label_depends_on_the_watermark():
    data = WatermarkedMNIST(root=str(REAL))
    accuracy = learn(data, convolutional(20), epochs=1)
    images, labels = data.images("val")[torch.arange(5000)]
    erased = MNIST(root=str(REAL)).images("val")[torch.arange(5000)].images
    with_watermarks, without = accuracy(images, labels), accuracy(erased, labels)
    assert with_watermarks > 0.75  # 0.82 to 0.88 with three seeds; without, one digit of two is a guess
    assert 0.4 < without < 0.6
    assert not torch.equal(images, erased)


@pytest.mark.thorough
def test_the_label_depends_on_the_border():
    data = DoubledDigits()
    accuracy = learn(data, convolutional(10), epochs=12)
    count = len(Digits().images("val"))
    images, labels = data.images("val")[torch.arange(count)]
    swapped = images.clone()
    swapped[:, [0, 1], :BORDER] = images[:, [1, 0], :BORDER]
    left = Digits().images("val").labels
    right = left[torch.randperm(count, generator=seeded(0, 1))]
    is_red = images[:, 0, 0, 0] == 1
    assert torch.equal(labels, torch.where(is_red, left, right))
    other = torch.where(is_red, right, left)
    assert accuracy(images, labels) > 0.85
    assert accuracy(swapped, other) > 0.85
    different = left != right
    assert accuracy(swapped[different], labels[different]) < 0.15
