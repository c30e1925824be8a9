"""Write the digits with few labels, for semi-supervised training: two npz files.

    uv run experiments/pseudo_labelled_digits.py data/few_digits

``labelled.npz``, which ``Arrays`` reads, has the first 13 training images of each class, and all validation and test
images. ``pseudo_labelled.npz``, which ``SemiSupervised`` reads, has the other 1,168 training images. Their classes are
the predictions of a support vector machine that learned from the labelled images alone; the command prints how many
are correct.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamodules import Digits
from datamodules.base import Split

_LABELLED_OF_A_CLASS = 13


def main(arguments: list[str] | None = None) -> None:
    """Divide, label and write."""
    from sklearn.svm import SVC  # takes a second

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write to")
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = _arrays("train")
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[:_LABELLED_OF_A_CLASS]] = True
    flat = images.reshape(len(images), -1) / 255
    pseudo = SVC(C=10).fit(flat[chosen], labels[chosen]).predict(flat[~chosen])
    arrays = {"train_images": images[chosen], "train_labels": labels[chosen]}
    arrays["val_images"], arrays["val_labels"] = _arrays("val")
    arrays["test_images"], arrays["test_labels"] = _arrays("test")
    np.savez_compressed(folder / "labelled.npz", **arrays)
    np.savez_compressed(folder / "pseudo_labelled.npz", image=images[~chosen], label=pseudo)
    correct = int((pseudo == labels[~chosen]).sum())
    print(f"{chosen.sum()} labelled images; {correct} of {len(pseudo)} pseudo labels are correct")


def _arrays(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, 28, 28), uint8, and labels (N,) of one split of the digits."""
    data = Digits().load(split)
    return data.pixels(torch.arange(len(data))).numpy(), data.labels.numpy()


if __name__ == "__main__":
    main()
