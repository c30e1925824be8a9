"""The embedded digits: a fixed, balanced split, and pixels equal to scikit-learn's."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from datamodules import Digits

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def digits():
    return Digits()


def test_split_sizes_and_balance(digits):
    assert [len(digits.images(split)) for split in SPLITS] == [1298, 200, 299]
    for split in SPLITS:
        counts = digits.images(split).labels.bincount(minlength=10)
        assert counts.max() - counts.min() <= 6


def test_splits_are_a_partition(digits):
    def rows(images, labels):
        return sorted((label, bytes(image.flatten().tolist())) for image, label in zip(images, labels, strict=True))

    parts = [digits.images(split) for split in SPLITS]
    source = load_digits()
    together = rows(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]).tolist())
    assert len(together) == len(set(together)) == len(source.target)
    assert sorted(label for label, _ in together) == sorted(source.target.tolist())


def test_split_is_fixed(digits):
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(digits.images(split).labels.numpy().tobytes())
        digest.update(digits.images(split).images.numpy().tobytes())
    assert digest.hexdigest() == "1536f9439799ca8e89de050c8a5421edf35f2af1034ac7fd603965e4f28c956f"


def test_batches_are_bytes_over_255(digits):
    digits.setup("test")
    batches = list(digits.test_dataloader())
    images = torch.cat([batch.images for batch in batches])
    assert images.dtype == torch.float32
    assert images.shape == (299, *digits.image_shape)
    assert torch.equal(images, digits.images("test").images / 255)
    assert images.min() == 0.0
    assert images.max() == 1.0
    assert torch.equal(torch.cat([batch.labels for batch in batches]), digits.images("test").labels)


def test_pictures_are_the_enlarged_originals(digits):
    source = load_digits()
    middles = (np.arange(28) + 0.5) * 8 / 28 - 0.5
    weights = np.stack([np.interp(middles, np.arange(8), row) for row in np.eye(8)], axis=1)
    expected = torch.from_numpy(weights @ source.images @ weights.T).flatten(1) / 16
    images, labels = digits.images("test")[torch.arange(299)]
    flat = images.flatten(1).double()
    nearest = torch.cdist(flat, expected).argmin(dim=1)
    assert (flat - expected[nearest]).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(torch.from_numpy(source.target)[nearest], labels)


def test_labels_belong_to_the_pictures(digits):
    images, labels = digits.images("train")[torch.arange(1298)]
    means = torch.stack([images[labels == c].mean(0) for c in range(10)]).flatten(1)
    images, labels = digits.images("test")[torch.arange(299)]
    assert (torch.cdist(images.flatten(1), means).argmin(1) == labels).float().mean() > 0.85
