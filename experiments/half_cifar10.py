"""Write CIFAR-10 in half resolution, 3x16x16, to an npz file that ``Arrays`` reads: each pixel is the mean of four.

    uv run experiments/half_cifar10.py ROOT data/cifar10_half.npz

ROOT holds torchvision's files, whose checksums are not verified: say which copy it was. The splits are those of
``CIFAR10``: 45,000 images for training, 5,000 for validation, 10,000 for the test.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamodules import CIFAR10
from datamodules.base import Split


def main(arguments: list[str] | None = None) -> None:
    """Read, halve and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder of cifar-10-batches-py")
    parser.add_argument("path", type=Path, help="npz file to write")
    given = parser.parse_args(arguments)
    data, arrays = CIFAR10(root=given.root, verify_checksums=False), {}
    for split in get_args(Split):
        images = data.load(split)
        pixels = images.pixels(torch.arange(len(images))).float()
        arrays[f"{split}_images"] = F.avg_pool2d(pixels, 2).round().to(torch.uint8).numpy()
        arrays[f"{split}_labels"] = images.labels.numpy()
    given.path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(given.path, **arrays)


if __name__ == "__main__":
    main()
