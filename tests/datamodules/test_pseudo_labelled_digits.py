"""The digits with few labels: no test image has a pseudo label, and the labelled images are not used twice."""

import importlib.util

import numpy as np
import torch

from datamodules import Arrays, Digits, SemiSupervised
from tests.testers import ROOT


def test_the_training_images_are_divided(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location(
        "pseudo_labelled_digits", ROOT / "experiments" / "pseudo_labelled_digits.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main([str(tmp_path / "new")])
    labelled = Arrays(path=str(tmp_path / "new" / "labelled.npz"), batch_size=32)
    pseudo = np.load(tmp_path / "new" / "pseudo_labelled.npz")
    whole, digits = Digits().load("train"), labelled.load("train")
    assert np.bincount(digits.labels.numpy()).tolist() == [13] * 10
    images = np.concatenate([digits.pixels(torch.arange(130)).numpy(), pseudo["image"]])
    assert sorted(map(bytes, images)) == sorted(map(bytes, whole.images.numpy()))
    right = {bytes(image): label for image, label in zip(whole.images.numpy(), whole.labels.tolist(), strict=True)}
    count = sum(right[bytes(image)] == label for image, label in zip(pseudo["image"], pseudo["label"], strict=True))
    assert f"130 labelled images; {count} of 1168 pseudo labels are correct" in capsys.readouterr().out
    assert 0.7 < count / 1168 < 1
    for split in ("val", "test"):
        assert torch.equal(labelled.load(split).labels, Digits().load(split).labels)
    mixed = SemiSupervised(labelled=labelled, pseudo_labelled=str(tmp_path / "new" / "pseudo_labelled.npz"))
    assert len(mixed.train_dataloader()) == 8
