"""No image of the user's own is left out, read twice, or in training and test, without a word."""

import shutil

import numpy as np
import pytest

from datamodules import Arrays, ImageFolder, Table
from robust.errors import SettingError
from tests.datamodules.pictures import write_classes


def folder(root, **settings):
    return ImageFolder(root=str(root), image_size=14, **settings)


@pytest.fixture
def root(tmp_path):
    return write_classes(tmp_path / "root", {"a": 8, "b": 8})


@pytest.fixture
def divided(tmp_path):
    for split in ("train", "test"):
        write_classes(tmp_path / "divided" / split, {"a": 4, "b": 4})
    return tmp_path / "divided"


def test_linked_folders_are_read(root, tmp_path):
    """Regression: the images behind a link to a folder were left out."""
    write_classes(tmp_path / "more", {"a": 3})
    (root / "a" / "linked").symlink_to(tmp_path / "more" / "a")
    assert len(folder(root).samples) == 19
    shutil.move(root / "b", tmp_path / "b")
    (root / "b").symlink_to(tmp_path / "b")
    assert folder(root).class_names == ("a", "b")


@pytest.mark.parametrize("setting", ["val_fraction", "test_fraction"])
def test_fractions_without_effect_are_refused(setting, divided):
    """Regression: they had no effect, without a word."""
    if setting == "val_fraction":
        write_classes(divided / "val", {"a": 1, "b": 1})
    with pytest.raises(SettingError, match=rf"^data\.{setting}: got 0\.3; the data give their own splits"):
        folder(divided, **{setting: 0.3}).images("train")


def test_a_fraction_of_given_training_images_is_validation(divided):
    assert len(folder(divided, val_fraction=0.5).images("val")) == 4


@pytest.mark.parametrize("place", ["a/broken.png", "c"])
def test_broken_links_are_refused(place, root):
    """Regression: an image, or a whole class, was left out."""
    (root / place).symlink_to(root / "nowhere")
    with pytest.raises(SettingError, match=rf"^data.root: got '.*{place}'; this link leads nowhere; mend or remove it"):
        folder(root)


def test_a_link_to_a_folder_above_is_refused(root):
    (root / "a" / "again").symlink_to(root / "a")
    with pytest.raises(SettingError, match=r"^data.root: got '.*a/again'; it is the same folder as .*a, whose images"):
        folder(root)


@pytest.mark.parametrize(("link", "to"), [("a/more", "b"), ("c", "b"), ("a/twice.png", "b/b 0.png")])
def test_images_that_are_there_twice_are_refused(link, to, root):
    """Regression: they had two labels, or were in training and test."""
    (root / link).symlink_to(root / to)
    with pytest.raises(SettingError, match=r"^data.root: got .*; it is the same (image|folder) as"):
        folder(root)


def test_the_link_is_named_whatever_the_order_of_folders(root):
    (root / "a" / "zz").mkdir()
    (root / "a" / "aa").symlink_to(root / "a" / "zz")
    with pytest.raises(SettingError, match=r"^data.root: got '.*a/aa'; it is the same folder as .*a/zz, whose"):
        folder(root)


def test_folders_without_images_do_not_matter(divided):
    for name in ("annotations", "__MACOSX"):
        (divided / name).mkdir()
        (divided / name / "notes.txt").touch()
    assert folder(divided).class_names == ("a", "b")
    assert folder(divided, split="folders").class_names == ("a", "b")


def test_folders_that_are_no_split_are_refused(divided):
    """Regression: with ``split: folders`` the images of ``valid`` were left out."""
    write_classes(divided / "valid", {"a": 2, "b": 2})
    with pytest.raises(SettingError, match=r"none but val beside them; it has \['test', 'train', 'valid'\]"):
        folder(divided, split="folders")
    (divided / "valid").rename(divided / "extra")
    with pytest.raises(SettingError, match=r"data.root: .*it has the subfolders extra, test, train; set data.spl"):
        folder(divided)
    assert folder(divided, split="fraction").class_names == ("extra", "test", "train")


def test_a_test_image_that_links_to_a_training_image_is_refused(divided):
    image = next((divided / "train" / "a").iterdir())
    (divided / "test" / "a" / f"linked{image.suffix}").symlink_to(image)
    with pytest.raises(SettingError, match=r"data.root: .*linked\..*'; it is the same image as .*; remove one"):
        folder(divided)


@pytest.mark.parametrize("name", ["valid_images", "val_labels", "images"])
def test_arrays_that_would_not_be_read_are_refused(name, tmp_path):
    images, labels = np.zeros((6, 1, 8, 8), dtype=np.uint8), np.arange(6) % 3
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(tmp_path / "own.npz", **arrays, file_names=np.arange(6), fine_labels=labels, num_images=np.array(6))
    assert Arrays(path=str(tmp_path / "own.npz")).num_classes == 3
    np.savez(tmp_path / "own.npz", **arrays, **{name: images if name.endswith("images") else labels})
    with pytest.raises(SettingError, match=rf"^data.path: got '{name}'; these arrays would not be read beside test_im"):
        Arrays(path=str(tmp_path / "own.npz"))


def test_a_column_that_is_named_twice_is_refused(root, tmp_path):
    """Regression: the last one counted."""
    rows = "".join(f"{path},{path.parent.name},{path.parent.name}\n" for path in sorted(root.rglob("*.*")))
    (tmp_path / "rows.csv").write_text(f"path,label,label\n{rows}")
    with pytest.raises(SettingError, match=r"^data.csv: got .*; it has two columns 'label'; rename one"):
        Table(csv=str(tmp_path / "rows.csv"), image_size=14)
