"""CIFAR-10 in half resolution: each pixel is the mean of four, the splits are CIFAR-10's."""

import importlib.util

import numpy as np
import pytest
import torch

from datamodules import CIFAR10, Arrays
from tests.testers import ROOT


@pytest.mark.filterwarnings("ignore:data.verify_checksums", "ignore:data.path. no training image has label")
def test_each_pixel_is_the_mean_of_four(written, tmp_path):
    spec = importlib.util.spec_from_file_location("half_cifar10", ROOT / "experiments" / "half_cifar10.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    path = tmp_path / "new" / "half.npz"
    script.main([str(written), str(path)])
    whole, half = CIFAR10(root=str(written), verify_checksums=False), Arrays(path=str(path))
    for split in ("train", "val", "test"):
        images, halved = whole.load(split), half.load(split)
        assert torch.equal(images.labels, halved.labels)
        pixels = images.pixels(torch.arange(len(images))).numpy().astype(float)
        mean = (pixels[..., ::2, ::2] + pixels[..., 1::2, ::2] + pixels[..., ::2, 1::2] + pixels[..., 1::2, 1::2]) / 4
        found = halved.pixels(torch.arange(len(halved))).numpy()
        assert found.shape == (len(images), 3, 16, 16)
        np.testing.assert_array_less(abs(found - mean), 0.5 + 1e-6)
