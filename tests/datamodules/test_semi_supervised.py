"""Labelled images mixed with pseudo-labelled ones."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import Arrays, CropAndFlip, Digits, DoubledDigits, SemiSupervised
from datamodules.arrays import ArrayImages
from datamodules.loading import FileImages, TensorImages
from datamodules.semi_supervised import JoinedImages, MixedBatches
from robust.errors import SettingError
from tests.datamodules.test_loaders import numbered

PIXELS = np.zeros((50, 28, 28, 1), np.uint8)
CLASSES = np.arange(50) % 10


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "pseudo.npz"
    np.savez(path, image=PIXELS, label=CLASSES)
    return str(path)


def mixed(labelled, pseudo, batch_size, labelled_in_batch, *, processes=1, rank=0, epoch=0, seed=0):
    images = numbered(labelled + pseudo)
    sampler = MixedBatches(images, batch_size, pseudo, labelled_in_batch, seed, num_replicas=processes, rank=rank)
    sampler.set_epoch(epoch)
    return [batch.tolist() for batch in sampler]


@pytest.mark.thorough
@settings(deadline=None)
@given(
    labelled=st.integers(4, 40),
    pseudo=st.integers(1, 40),
    labelled_in_batch=st.integers(1, 3),
    epoch=st.integers(0, 3),
    processes=st.sampled_from([1, 2, 4]),
)
def test_every_batch_has_the_set_fraction_and_every_labelled_image_comes_once(
    labelled, pseudo, labelled_in_batch, epoch, processes
):
    parts = [
        mixed(labelled, pseudo, 4, labelled_in_batch, processes=processes, rank=rank, epoch=epoch)
        for rank in range(processes)
    ]
    batches = [[index for own in part for index in own] for part in zip(*parts, strict=True)]
    assert batches == mixed(labelled, pseudo, 4, labelled_in_batch, epoch=epoch)
    assert len(batches) == labelled // labelled_in_batch
    seen = []
    for batch in batches:
        assert len(batch) == 4
        own = [index for index in batch if index < labelled]
        assert len(own) == labelled_in_batch
        seen += own
    assert len(seen) == len(set(seen)) == len(batches) * labelled_in_batch
    others = [index for batch in batches for index in batch if index >= labelled]
    uses = np.bincount(np.array(others) - labelled, minlength=pseudo)
    assert uses.max() - uses.min() <= 1


def test_order_depends_on_epoch_and_seed():
    orders = [mixed(20, 20, 4, 2, epoch=epoch, seed=seed) for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert orders[0] == mixed(20, 20, 4, 2)


@pytest.mark.parametrize("layout", ["npz", "carmon", "channels_first"])
def test_training_batches_mix_both_kinds(layout, tmp_path):
    path = tmp_path / ("data.pickle" if layout == "carmon" else "data.npz")
    if layout == "carmon":
        path.write_bytes(pickle.dumps({"data": PIXELS, "extrapolated_targets": CLASSES.tolist()}))
    else:
        np.savez(path, image=PIXELS.transpose(0, 3, 1, 2) if layout == "channels_first" else PIXELS, label=CLASSES)
    data = SemiSupervised(labelled=Digits(batch_size=20), pseudo_labelled=str(path), labelled_fraction=0.25)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == 1298 // 5
    for batch in batches[:3]:
        assert batch.images.shape == (20, 1, 28, 28)
        assert int((batch.images.flatten(1).amax(1) == 0).sum()) == 15
    assert torch.equal(data.images("val").images, Digits().images("val").images)
    assert torch.equal(data.images("test").labels, Digits().images("test").labels)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_labelled_images_from_arrays(kind, file, tmp_path):
    """Floats too, although the pseudo-labelled images are bytes."""
    images = np.full((40, 1, 28, 28), 51 if kind is np.uint8 else 0.2, kind)
    np.savez(
        tmp_path / "own.npz",
        train_images=images,
        train_labels=np.arange(40) % 10,
        test_images=images[:1],
        test_labels=np.zeros(1, int),
    )
    labelled = Arrays(path=str(tmp_path / "own.npz"), batch_size=10)
    data = SemiSupervised(labelled=labelled, pseudo_labelled=file, labelled_fraction=0.5)
    batches = list(data.train_dataloader())
    assert batches
    for batch in batches:
        brightest = batch.images.flatten(1).amax(1).sort().values
        torch.testing.assert_close(brightest, torch.tensor([0.0] * 5 + [0.2] * 5))


def images_of(kind, pixels, labels, tmp_path):
    """Images (N, 1, 28, 28), uint8, as tensors, as floats in an array, or as files."""
    if kind == "tensors":
        return TensorImages(pixels, labels, 10)
    if kind == "floats":
        return ArrayImages(pixels / 255, torch.arange(len(pixels)), labels)
    paths = [tmp_path / f"{index}.npy" for index in range(len(pixels))]
    for path, image in zip(paths, pixels.numpy(), strict=True):
        np.save(path, image)
    return FileImages(paths, labels, (1, 28, 28), lambda path: torch.from_numpy(np.load(path)))


@pytest.mark.parametrize("kind", ["tensors", "floats", "files"])
def test_each_joined_image_has_its_own_pixels_and_label(kind, tmp_path):
    """In any order, and where a process has images of one kind alone in its part of a batch, or none."""
    pixels = torch.randint(256, (19, 1, 28, 28), dtype=torch.uint8)
    labels = torch.arange(19) % 10
    joined = JoinedImages(
        images_of(kind, pixels[:12], labels[:12], tmp_path), TensorImages(pixels[12:], labels[12:], 10)
    )
    assert len(joined) == 19
    for indices in (torch.randperm(19), torch.tensor([3, 3, 15, 0]), torch.tensor([2]), torch.tensor([18, 12])):
        batch = joined[indices]
        assert torch.equal(batch.labels, labels[indices])
        torch.testing.assert_close(batch.images, pixels[indices] / 255)
    assert joined.pixels(torch.arange(0)).shape == (0, 1, 28, 28)


def test_pseudo_labelled_images_have_the_labels_of_the_file(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 256, (50, 28, 28, 1), np.uint8)
    np.savez(tmp_path / "own.npz", image=pixels, label=CLASSES)
    data = SemiSupervised(labelled=Digits(batch_size=8), pseudo_labelled=str(tmp_path / "own.npz"))
    images, count = data.images("train"), len(Digits().load("train"))
    batch = images[torch.arange(count, count + 50)]
    assert torch.equal(batch.labels, torch.from_numpy(CLASSES))
    torch.testing.assert_close(batch.images, torch.from_numpy(pixels).movedim(-1, 1) / 255)
    assert torch.equal(images.labels[:count], Digits().load("train").labels)


def test_predictions_are_of_what_the_labelled_data_name(file, tmp_path):
    np.savez(tmp_path / "new.npz", images=np.ones((3, 28, 28), np.float32))
    parts = {"train_images": np.zeros((20, 28, 28), np.float32), "train_labels": np.arange(20) % 10}
    np.savez(tmp_path / "own.npz", **parts, test_images=parts["train_images"], test_labels=parts["train_labels"])
    labelled = Arrays(path=str(tmp_path / "own.npz"), batch_size=10, predict_from=str(tmp_path / "new.npz"))
    data = SemiSupervised(labelled=labelled, pseudo_labelled=file)
    (images,) = data.predict_dataloader()
    assert torch.equal(images, torch.ones(3, 1, 28, 28))
    assert data.file_names("train") is None
    assert data.file_names("predict") == labelled.file_names("predict")


def test_regions_are_those_of_the_labelled_images(file, tmp_path):
    np.savez(tmp_path / "wide.npz", image=np.zeros((4, 32, 56, 3), np.uint8), label=np.arange(4))
    data = SemiSupervised(labelled=DoubledDigits(batch_size=8), pseudo_labelled=str(tmp_path / "wide.npz"))
    assert data.regions("test", torch.arange(2)).keys() == {"decisive", "irrelevant", "border"}
    assert not hasattr(SemiSupervised(labelled=Digits(batch_size=8), pseudo_labelled=file), "regions")


def test_more_labelled_images_in_a_batch_than_there_are(file):
    data = SemiSupervised(labelled=Digits(batch_size=2600), pseudo_labelled=file)
    message = (
        r"data\.labelled_fraction: got 0\.5; a batch would need 1300 labelled images, of which there are 1298; give a"
    )
    with pytest.raises(SettingError, match=message):
        data.train_dataloader()


def test_settings_are_those_of_the_labelled_images(file):
    augmentation = CropAndFlip(flip=False)
    labelled = Digits(batch_size=8, eval_batch_size=9, num_workers=1, seed=5, augmentation=augmentation)
    data = SemiSupervised(labelled=labelled, pseudo_labelled=file)
    assert (data.batch_size, data.eval_batch_size, data.num_workers, data.seed) == (8, 9, 1, 5)
    assert data.augmentation is augmentation
    assert (data.num_classes, data.image_shape) == (10, (1, 28, 28))


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.3, 1.5])
def test_wrong_fraction(file, fraction):
    with pytest.raises(SettingError, match=r"data\.labelled_fraction: got .*batch_size 8"):
        SemiSupervised(labelled=Digits(batch_size=8), pseudo_labelled=file, labelled_fraction=fraction)


def test_wrong_files(tmp_path, file):
    def message(content=None, name="x.npz"):
        path = tmp_path / name
        if content is not None:
            np.savez(path, **content)
        with pytest.raises(SettingError, match=r"^(data\.pseudo_labelled|labels): ") as caught:
            SemiSupervised(labelled=Digits(), pseudo_labelled=str(path)).setup("fit")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "FileNotFoundError" in message(name="absent.npz")
    assert "none of image, images, data" in message({"pixels": PIXELS, "label": CLASSES})
    assert "none of label" in message({"image": PIXELS})
    assert "(50, 3, 28, 28)" in message({"image": PIXELS.repeat(3, axis=3), "label": CLASSES})
    assert "uint8" in message({"image": PIXELS / 255, "label": CLASSES})
    assert "give classes from 0 to 9" in message({"image": PIXELS, "label": CLASSES + 1})
    (tmp_path / "cut.npz").write_bytes((tmp_path / "pseudo.npz").read_bytes()[:100])
    assert "cannot read it" in message(name="cut.npz")
