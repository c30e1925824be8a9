"""Random crop and flip, compared with a plain computation, and in a Trainer."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import CropAndFlip, ImageDataModule
from datamodules.loading import TensorImages
from robust.errors import SettingError

NUMPY_MODES = {"zero": "constant", "reflect": "reflect", "edge": "edge"}


def plainly(image, padding, fill, row, column, flipped):
    """One image, (C, H, W): pad, crop, flip, by NumPy."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), NUMPY_MODES[fill])
    crop = padded[:, row : row + height, column : column + width]
    return crop[:, :, ::-1] if flipped else crop


@settings(deadline=None)
@given(
    seed=st.integers(0, 99),
    channels=st.sampled_from([1, 3]),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
    padding=st.integers(0, 4),
    fill=st.sampled_from(sorted(NUMPY_MODES)),
    flip=st.booleans(),
)
def test_equals_the_plain_computation(seed, channels, height, width, padding, fill, flip):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(6, channels, height, width, generator=generator)
    augmentation = CropAndFlip(padding, fill, flip)
    placement = augmentation.draw(6, generator)
    result = augmentation.apply(images, placement)
    for image, augmented, row, column, flipped in zip(images, result, *placement, strict=True):
        expected = plainly(image.numpy(), padding, fill, int(row), int(column), bool(flipped))
        assert np.array_equal(augmented.numpy(), expected)


def test_draws_every_offset_and_both_sides_evenly():
    rows, columns, flipped = CropAndFlip(2).draw(10_000, torch.Generator().manual_seed(0))
    for offsets in (rows, columns):
        counts = offsets.bincount(minlength=5)
        assert len(counts) == 5
        assert (counts - 2000).abs().max() < 200
    assert abs(flipped.float().mean() - 0.5) < 0.03
    assert not CropAndFlip(2, flip=False).draw(100).flipped.any()


def test_draws_from_torchs_generator():
    images = torch.rand(8, 3, 16, 16)
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(CropAndFlip()(images))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_without_crop_and_flip_images_stay_the_same():
    images = torch.rand(8, 3, 16, 16)
    assert torch.equal(CropAndFlip(padding=0, flip=False)(images), images)


@pytest.mark.gpu
def test_the_gpu_gives_the_same_images():
    images = torch.rand(8, 3, 16, 16)
    placement = CropAndFlip().draw(8)
    assert torch.equal(CropAndFlip().apply(images.cuda(), placement).cpu(), CropAndFlip().apply(images, placement))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"padding": -1}, r"data\.augmentation\.padding: got -1"),
        ({"fill": "wrap"}, r"data\.augmentation\.fill: got 'wrap'; give zero, reflect or edge"),
    ],
)
def test_wrong_settings(settings_, message):
    with pytest.raises(SettingError, match=message):
        CropAndFlip(**settings_)


def test_reflection_must_fit_the_images():
    with pytest.raises(SettingError, match=r"padding: got 4; reflect takes at most 3"):
        CropAndFlip(4, "reflect")(torch.rand(2, 1, 4, 8))
    assert CropAndFlip(4, "edge")(torch.rand(2, 1, 4, 8)).shape == (2, 1, 4, 8)


class Ramp(ImageDataModule):
    """Images whose pixels are all different."""

    num_classes = 2
    image_shape = (1, 6, 6)

    def load(self, split):
        images = torch.arange(12 * 36, dtype=torch.int64).view(12, 1, 6, 6) % 251
        return TensorImages(images.to(torch.uint8), torch.zeros(12).long(), 2)


class Recorder(pl.LightningModule):
    """Records the images of each step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.evaluated = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch.images))
        return self.weight * batch.images.sum()

    def validation_step(self, batch, batch_idx):
        self.evaluated.append(batch.images)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, *, padding=2, ckpt_path=None, batch_size=4, **options):
    module, data = Recorder(), Ramp(batch_size=batch_size, augmentation=CropAndFlip(padding), seed=3)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **({"max_epochs": 2, "enable_checkpointing": False} | options),
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, data


def test_training_batches_are_augmented_and_validation_is_not(tmp_path):
    module, data = fit(tmp_path)
    plain, _ = fit(tmp_path, padding=0)
    assert any(not torch.equal(a[2], b[2]) for a, b in zip(module.seen, plain.seen, strict=True))
    assert torch.equal(torch.cat(module.evaluated[-1:]), data.images("val")[torch.arange(12)].images)
    first, second = ([images for epoch, _, images in module.seen if epoch == number] for number in (0, 1))
    assert not torch.equal(torch.cat(first).sort(0).values, torch.cat(second).sort(0).values)


def test_a_run_resumed_inside_an_epoch_augments_in_the_same_way(tmp_path):
    whole, _ = fit(tmp_path)
    saver = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path, max_steps=4, max_epochs=-1, enable_checkpointing=True, callbacks=[saver])
    resumed, _ = fit(tmp_path, ckpt_path=tmp_path / "step=4.ckpt")
    assert [note[:2] for note in resumed.seen] == [(1, 1), (1, 2)]
    for note, expected in zip(resumed.seen, whole.seen[4:], strict=True):
        assert torch.equal(note[2], expected[2])


def test_each_process_uses_its_part_of_the_draws():
    """Two processes with half a batch each crop and flip as one process does."""
    data = Ramp(batch_size=4, augmentation=CropAndFlip(2), seed=3)

    class Place:
        current_epoch, training = 1, True

        def __init__(self, world_size, global_rank):
            self.world_size, self.global_rank = world_size, global_rank
            ready = type("", (), {"ready": 2})
            progress = type("", (), {"current": ready})
            self.fit_loop = type("", (), {"epoch_loop": type("", (), {"batch_progress": progress})})

    def placed(world_size, rank):
        data.trainer = Place(world_size, rank)
        return data._placement(data.augmentation)

    halves = [placed(2, rank) for rank in (0, 1)]
    whole = placed(1, 0)
    assert all(torch.equal(torch.cat(pair), one) for *pair, one in zip(*halves, whole, strict=True))
