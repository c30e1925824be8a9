"""Images of the user's own that a checkpoint was trained on are not taken for validation or test images."""

import re
import shutil

import numpy as np
import pytest
from torch import nn

from datamodules import Arrays, ImageFolder, SemiSupervised, Table
from lightning_modules import StandardTraining
from robust.errors import SettingError
from tests.callbacks.trained import trainer_with
from tests.datamodules.pictures import save, write_classes
from tests.datamodules.test_own_files import GREY, write_table


def data(root, **settings):
    return ImageFolder(root=str(root), image_size=8, batch_size=4, **settings)


def module(resume_settings=None):
    built = StandardTraining(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)))
    built.resume_settings = resume_settings
    return built


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of the images, and a checkpoint of an epoch on them."""
    folder = tmp_path_factory.mktemp("trained")
    root = write_classes(folder / "images", {"birne": 20, "kiwi": 20})
    trainer = trainer_with(max_epochs=1, default_root_dir=folder)
    trainer.fit(module(), datamodule=data(root))
    trainer.save_checkpoint(folder / "last.ckpt")
    return root, folder / "last.ckpt"


def warned(recwarn):
    return [str(each.message) for each in recwarn if str(each.message).startswith("data: got")]


@pytest.mark.thorough
def test_a_test_of_the_same_split_is_not_warned_of(trained, tmp_path, recwarn):
    root, checkpoint = trained
    moved = shutil.copytree(root, tmp_path / "moved")
    for folder in (root, moved):
        trainer_with().test(module(), datamodule=data(folder), ckpt_path=checkpoint, verbose=False)
    assert warned(recwarn) == []


def test_another_split_is_warned_of_in_a_test_and_refused_in_a_training(trained, recwarn):
    """Regression: training images became test images without a word."""
    root, checkpoint = trained
    other = {"datamodule": data(root, split_seed=1), "ckpt_path": checkpoint}
    trainer_with().test(module(), **other, verbose=False)
    (warning,) = warned(recwarn)
    assert re.match(r"data: got \d of 8 test images that the checkpoint was trained on; accuracies on", warning)
    with pytest.raises(
        SettingError, match=r"^data: got '\d of 4 val images that the checkpoint was trained on'; give "
    ):
        trainer_with(max_epochs=2).fit(module(), **other)
    trainer_with(max_epochs=2).fit(module("config"), **other)


def test_images_that_were_added_are_warned_of(trained, tmp_path, recwarn):
    root, checkpoint = trained
    grown = shutil.copytree(root, tmp_path / "grown")
    for name in ("birne", "kiwi"):
        save(grown / name / "0_first.png", GREY)
    trainer_with().test(module(), datamodule=data(grown), ckpt_path=checkpoint, verbose=False)
    assert len(warned(recwarn)) == 1


@pytest.mark.parametrize("semi_supervised", [False, True])
def test_arrays_and_labelled_images_beside_others_are_known_too(semi_supervised, tmp_path, recwarn):
    """Regression: their training images became test images without a word."""
    draws = np.random.default_rng(0)
    images, labels = draws.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8), np.arange(40) % 2
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    np.savez(tmp_path / "pseudo.npz", image=images, label=labels)

    def of(split_seed):
        own = Arrays(path=str(tmp_path / "own.npz"), batch_size=4, split_seed=split_seed)
        return SemiSupervised(labelled=own, pseudo_labelled=str(tmp_path / "pseudo.npz")) if semi_supervised else own

    trainer = trainer_with(max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(module(), datamodule=of(0))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    for split_seed, count in ((0, 0), (1, 1)):
        trainer_with().test(module(), datamodule=of(split_seed), ckpt_path=tmp_path / "last.ckpt", verbose=False)
        assert len(warned(recwarn)) == count
    with pytest.raises(
        SettingError, match=r"^data: got '\d of 4 val images that the checkpoint was trained on'; give "
    ):
        trainer_with(max_epochs=2).fit(module(), datamodule=of(1), ckpt_path=tmp_path / "last.ckpt")


def test_a_table_knows_an_image_by_each_of_its_paths(tmp_path):
    """Regression: by a relative and an absolute path it was in the training and in the test."""
    save(tmp_path / "a.png", GREY)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    for path in (tmp_path / "a.png", "./a.png", "link.png"):
        table = write_table(tmp_path / "rows.csv", [("a.png", "x", "train"), (path, "x", "test")])
        with pytest.raises(SettingError, match=r"this image is already in data\.csv, line 2"):
            Table(csv=str(table), image_size=8)
