"""Image files of the user's own, by folders and by tables: classes, splits, errors, batches from disk."""

import csv
import logging

import numpy as np
import pytest
import torch

from datamodules import ImageFolder, SemiSupervised, Table
from datamodules.own_data import stratified
from robust.errors import SettingError
from tests.datamodules.pictures import save, write_classes

COUNTS = {"Äpfel rot": 20, "birne": 10, "kiwi": 1}
GREY = np.full((5, 5), 90, np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("eigene bilder"), COUNTS)


def by_folder(root, **settings):
    return ImageFolder(root=str(root), **({"image_size": 8} | settings))


def labels_of(data):
    return {
        split: torch.bincount(data.images(split).labels, minlength=3).tolist() for split in ("train", "val", "test")
    }


def write_table(path, rows, columns=("path", "label", "split"), encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([columns, *rows])
    return path


class TestClassesAndSplits:
    def test_classes_shape_and_a_stratified_division(self, folder):
        data = by_folder(folder)
        assert data.class_names == tuple(sorted(COUNTS)) == ("birne", "kiwi", "Äpfel rot")
        assert (data.num_classes, data.image_shape) == (3, (3, 8, 8))
        assert labels_of(data) == {"train": [7, 1, 14], "val": [1, 0, 2], "test": [2, 0, 4]}
        names = [name for split in ("train", "val", "test") for name in data.file_names(split)]
        assert sorted(names) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))

    def test_the_division_has_a_seed_of_its_own(self, folder):
        names = [
            by_folder(folder, seed=seed, split_seed=split).file_names("test")
            for seed, split in ((0, 0), (1, 0), (0, 1))
        ]
        assert names[0] == names[1] != names[2]

    def test_a_class_without_images_in_a_split_is_logged(self, folder, caplog):
        with caplog.at_level(logging.INFO):
            by_folder(folder).images("test")
        assert "Data: 6 test images of 3 classes; none of kiwi" in caplog.text
        assert "are kept in memory" in caplog.text

    def test_every_class_keeps_an_image_for_training(self):
        for count in (1, 2, 3):
            parts = stratified(torch.zeros(count).long(), {"val": 0.45, "test": 0.45}, 0)
            assert len(parts["train"]) >= 1
            assert sum(len(part) for part in parts.values()) == count

    def test_class_names_fix_the_order(self, folder):
        names = ["kiwi", "Äpfel rot", "birne", "apricot"]
        data = by_folder(folder, class_names=names)
        assert data.num_classes == 4
        assert data.images("test").labels.bincount(minlength=4).tolist() == [0, 4, 2, 0]

    def test_by_subfolders(self, tmp_path):
        for split, count in (("train", 10), ("test", 3)):
            write_classes(tmp_path / split, {"a": count, "b": count})
        assert labels_of(by_folder(tmp_path)) == {"train": [9, 9, 0], "val": [1, 1, 0], "test": [3, 3, 0]}
        write_classes(tmp_path / "val", {"a": 2, "b": 1})
        assert labels_of(by_folder(tmp_path)) == {"train": [10, 10, 0], "val": [2, 1, 0], "test": [3, 3, 0]}
        with pytest.raises(SettingError, match=r"'; it is in|^data\.root: "):
            by_folder(tmp_path / "train" / "a")

    def test_folders_called_train_and_test_can_be_classes(self, tmp_path):
        write_classes(tmp_path, {"train": 10, "test": 10})
        data = by_folder(tmp_path, split="fraction")
        assert data.class_names == ("test", "train")

    @pytest.mark.parametrize("names", [("train", "val"), ("train", "valid", "test"), ("test",)])
    def test_folders_of_other_splits_are_no_classes(self, tmp_path, names):
        """Regression: those of ImageNet's layout, train and val, silently were the two classes."""
        for split in names:
            write_classes(tmp_path / split, {"a": 3, "b": 3})
        found = ", ".join(sorted(names))
        with pytest.raises(
            SettingError, match=rf"^data\.root: got .*; the subfolders {found} have names of splits; call"
        ):
            by_folder(tmp_path)

    def test_by_a_csv_file(self, folder, tmp_path):
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
        rows = [(name, ("train", "val", "test")[index % 3]) for index, name in enumerate(names)]
        data = by_folder(folder, split=str(write_table(tmp_path / "s.csv", rows, ("path", "split"))))
        assert data.file_names("val") == names[1::3]
        table = write_table(tmp_path / "s.csv", rows[1:], ("path", "split"))
        with pytest.raises(SettingError, match=r"^data\.split: .*it has no row for birne/birne 0\.png; add one$"):
            by_folder(folder, split=str(table))
        table = write_table(tmp_path / "s.csv", [*rows, ("nothing.png", "val")], ("path", "split"))
        with pytest.raises(SettingError, match=r"^data\.split, line 33 of .*got 'nothing\.png'; there is no such"):
            by_folder(folder, split=str(table))
        table = write_table(tmp_path / "s.csv", [*rows, (names[0], "val")], ("path", "split"))
        with pytest.raises(SettingError, match=r"^data\.split, line 33 of .*an earlier row has this image, too"):
            by_folder(folder, split=str(table))


class TestImages:
    def test_grey_among_rgb_in_either_number_of_channels(self, tmp_path):
        root = write_classes(tmp_path, {"a": 10, "b": 10})
        save(root / "a" / "a 0.png", GREY)
        for channels in (1, 3):
            data = by_folder(root, channels=channels)
            assert {tuple(data.images(split)[[0]].images.shape) for split in ("train", "val")} == {(1, channels, 8, 8)}

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_batches_from_disk_equal_those_in_memory(self, folder, num_workers):
        """Of any number of workers."""
        batches = [
            list(by_folder(folder, in_memory=kept, batch_size=4, num_workers=workers).train_dataloader())
            for kept, workers in ((True, 0), (False, num_workers))
        ]
        for one, other in zip(*batches, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)

    @pytest.mark.parametrize(("kept", "num_workers"), [(True, 0), (False, 0), (False, 1)])
    def test_a_damaged_file_is_named(self, tmp_path, kept, num_workers):
        """Also by a loader's worker."""
        root = write_classes(tmp_path, {"a": 3, "b": 3})
        for path in (root / "b").iterdir():
            path.write_bytes(path.read_bytes()[:40])
        data = by_folder(root, in_memory=kept, batch_size=4, num_workers=num_workers)
        with pytest.raises(SettingError, match=r"^data\.root: got '.*b/b \d\.\w+'; cannot read this image \([^\n]*$"):
            list(data.train_dataloader())

    def test_the_log_says_that_images_stay_on_disk(self, folder, caplog):
        with caplog.at_level(logging.INFO):
            by_folder(folder, in_memory=False, num_workers=2).images("val")
        assert "the val images, 0.0 MB of pixels, are decoded for each batch by data.num_workers 2" in caplog.text

    def test_batches_with_pseudo_labels_from_disk_equal_those_in_memory(self, folder, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), np.uint8)
        np.savez(tmp_path / "p.npz", image=images, label=np.zeros(9, np.int64))
        batches = [
            list(
                SemiSupervised(
                    labelled=by_folder(folder, in_memory=kept, batch_size=4), pseudo_labelled=str(tmp_path / "p.npz")
                ).train_dataloader()
            )
            for kept in (True, False)
        ]
        assert len(batches[0]) == len(batches[1]) > 0
        for one, other in zip(*batches, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)


class TestPredictFrom:
    def test_a_folder_without_classes(self, folder, tmp_path):
        for name in ("x/ö 1.png", "a.png"):
            save(tmp_path / name, GREY)
        data = by_folder(folder, predict_from=str(tmp_path))
        assert data.file_names("predict") == ["a.png", "x/ö 1.png"]
        (batch,) = data.predict_dataloader()
        assert batch.shape == (2, 3, 8, 8)

    def test_the_labelled_images_are_not_needed(self, tmp_path):
        save(tmp_path / "a.png", GREY)
        data = by_folder("absent", class_names=["b", "c"], predict_from=str(tmp_path))
        data.setup("predict")
        assert (data.num_classes, len(data.images("predict"))) == (2, 1)

    @pytest.mark.parametrize("name", ["absent", ""])
    def test_an_absent_or_empty_folder(self, folder, tmp_path, name):
        with pytest.raises(SettingError, match=r"^data\.predict_from: got '.*'; the(re is no such folder| folder has)"):
            by_folder(folder, predict_from=str(tmp_path / name) + "/").images("predict")


class TestFolderErrors:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"image_size": 0}, r"^data\.image_size: got 0; give at least one pixel"),
            ({"image_size": (8, 0)}, r"^data\.image_size: got \(8, 0\)"),
            ({"channels": 2}, r"^data\.channels: got 2; give 1 \(grey\) or 3 \(RGB\)"),
            ({"resize": "pad"}, r"^data\.resize: got 'pad'; give crop or stretch"),
            ({"val_fraction": 0.0}, r"^data\.val_fraction: got 0\.0; give a fraction between 0 and 1"),
            ({"test_fraction": 0.9}, r"^data\.test_fraction: got 0\.9; with data\.val_fraction 0\.1, no images"),
            ({"split_seed": -1}, r"^data\.split_seed: got -1; give 0 or more"),
            ({"class_names": ["a", "a"]}, r"^data\.class_names: got \['a', 'a'\]; give at least two different"),
            (
                {"split": "folders"},
                r"^data\.split: got 'folders'; .* needs the subfolders train and test, and none but",
            ),
            ({"split": "absent.csv"}, r"^data\.split: got 'absent\.csv'; cannot read it \(No such file or directory\)"),
        ],
    )
    def test_settings(self, folder, settings, message):
        with pytest.raises(SettingError, match=message):
            by_folder(folder, **settings)

    def test_a_folder_whose_class_is_not_named(self, folder):
        with pytest.raises(SettingError, match=r"^data\.class_names: got 'kiwi'; the class of .*kiwi 0\.png is not"):
            by_folder(folder, class_names=["birne", "Äpfel rot"]).images("test")

    def test_folders(self, tmp_path):
        with pytest.raises(SettingError, match=r"^data\.root: got 'absent'; there is no such folder"):
            by_folder("absent")
        with pytest.raises(SettingError, match=r"; the folder has no subfolders; give one for each class"):
            by_folder(tmp_path)
        write_classes(tmp_path, {"a": 1})
        with pytest.raises(SettingError, match=r"^data\.root: got \['a'\]; give at least two different classes"):
            by_folder(tmp_path)
        (tmp_path / "b").mkdir()
        with pytest.raises(SettingError, match=r"^data\.root: got '.*/b'; the folder has no images"):
            by_folder(tmp_path)
        path = save(tmp_path / "b" / "b.png", GREY).rename(tmp_path / "b" / "b.tiff")
        with pytest.raises(SettingError, match=r"b\.tiff'; its format is not one of \.png, \.jpg"):
            by_folder(tmp_path)
        path.rename(tmp_path / "b.png")
        with pytest.raises(SettingError, match=r"b\.png'; it is not in the subfolder of a class; .*data\.predict_from"):
            by_folder(tmp_path)

    def test_a_split_without_images(self, tmp_path):
        with pytest.raises(SettingError, match=r"no images of the split val; add some or, .* raise data\.val"):
            by_folder(write_classes(tmp_path, {"a": 1, "b": 1})).images("val")


class TestTable:
    def table(self, tmp_path, rows, columns=("path", "label", "split"), **settings):
        save(tmp_path / "bilder" / "ü 1.png", GREY)
        save(tmp_path / "bilder" / "b.png", GREY)
        path = write_table(tmp_path / "t.csv", rows, columns)
        return Table(**({"csv": str(path), "image_size": 4} | settings))

    def test_columns_root_and_numbers(self, tmp_path):
        rows = [("ü 1.png", "10", "train"), ("b.png", "9", "test")]
        data = self.table(tmp_path, rows, ("file", "kind", "part"), root=str(tmp_path / "bilder"),
                          path_column="file", label_column="kind", split_column="part")  # fmt: skip
        assert data.class_names == ("9", "10")  # sorted as numbers
        assert data.file_names("train") == ["ü 1.png"]
        assert data.images("test").labels.tolist() == [0]

    def test_without_splits_each_class_is_divided(self, tmp_path):
        root = write_classes(tmp_path, COUNTS)
        rows = [(path.relative_to(root).as_posix(), path.parent.name) for path in sorted(root.rglob("*.*"))]
        path = write_table(tmp_path / "t.csv", rows, ("path", "label"), encoding="utf-8-sig")  # as spreadsheets write
        assert labels_of(Table(csv=str(path), image_size=8)) == labels_of_folder(root, tmp_path)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (("bilder/c.png", "a", "val"), r"^data\.csv, line 3 of .*t\.csv: got 'bilder/c\.png'; there is no file"),
            (("t.csv", "a", "val"), r"line 3 of .*got 't\.csv'; its format is not one of \.png"),
            (
                ("bilder/b.png", " ", "val"),
                r"line 3 of .*got ''; give the class of bilder/b\.png in the column",
            ),
            (("bilder/b.png", "b", "dev"), r"line 3 of .*got 'dev'; give train, val, test in the column 'split'"),
            (("bilder/b.png", "b"), r"line 3 of .*got 'bilder/b\.png,b,None'; give one value for each column"),
            (
                ("bilder/../bilder/ü 1.png", "b", "val"),
                r"line 3 of .*; this image is already in data\.csv, line 2 of .*; remove",
            ),
            (
                ("bilder/ü 1.png", "b", "val"),
                r"line 3 of .*; this image is already in data\.csv, line 2 of .*; remove",
            ),
        ],
    )
    def test_a_wrong_row(self, tmp_path, row, message):
        with pytest.raises(SettingError, match=message):
            self.table(tmp_path, [("bilder/ü 1.png", "a", "train"), row])

    def test_a_label_that_is_no_class(self, tmp_path):
        rows = [("bilder/ü 1.png", "a", "train"), ("bilder/b.png", "x", "test")]
        with pytest.raises(SettingError, match=r"line 3 of .*got 'x'; it is not one of data\.class_names \['a', 'b'\]"):
            self.table(tmp_path, rows, class_names=["a", "b"]).images("test")

    def test_missing_columns_rows_and_files(self, tmp_path):
        with pytest.raises(SettingError, match=r"it has no column 'label', but \['path', 'class'\]; name another"):
            self.table(tmp_path, [("bilder/b.png", "a")], ("path", "class"))
        with pytest.raises(SettingError, match=r"it has no column 'part'"):
            self.table(tmp_path, [("bilder/b.png", "a")], ("path", "label"), split_column="part")
        with pytest.raises(SettingError, match="it has no rows below the names"):
            self.table(tmp_path, [])
        with pytest.raises(SettingError, match=r"^data\.csv: got 'absent\.csv'; cannot read it \(No such file"):
            Table(csv="absent.csv", image_size=4)
        (tmp_path / "t.csv").write_bytes("path,label\nü,a".encode("latin-1"))
        with pytest.raises(SettingError, match=r"cannot read it \('utf-8' codec .*\); give a CSV file in UTF-8"):
            Table(csv=str(tmp_path / "t.csv"), image_size=4)


def labels_of_folder(root, tmp_path):
    (tmp_path / "t.csv").rename(tmp_path / ".t.csv")
    return labels_of(by_folder(root))
