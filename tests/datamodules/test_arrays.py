"""Arrays of the user's own: npz, npy and safetensors files, every layout, every error."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from datamodules import Arrays
from robust.errors import SettingError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 3, 5, 7), dtype=np.uint8)
LABELS = np.arange(30) % 3
ALL = {"images": IMAGES, "labels": LABELS}
SPLIT = {
    "train_images": IMAGES[:20],
    "train_labels": LABELS[:20],
    "test_images": IMAGES[20:],
    "test_labels": LABELS[20:],
}


def write(folder, form, arrays):
    path = folder / f"a.{form}"
    if form == "npz":
        np.savez(path, **arrays)
    elif form == "safetensors":
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    else:
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    return str(path)


@pytest.mark.parametrize("form", ["npz", "npy", "safetensors"])
def test_every_format_gives_all_images_once(tmp_path, form):
    data = Arrays(path=write(tmp_path, form, ALL))
    assert (data.num_classes, data.image_shape, data.class_names) == (3, (3, 5, 7), ("0", "1", "2"))
    sizes = {split: len(data.images(split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 21, "val": 3, "test": 6}
    batches = [data.images(split)[list(range(size))] for split, size in sizes.items()]
    found = sorted(torch.cat([batch.images for batch in batches]).mul(255).round().byte().flatten(1).tolist())
    assert found == sorted(IMAGES.reshape(30, -1).tolist())


@pytest.mark.parametrize("form", ["npz", "npy", "safetensors"])
def test_given_splits(tmp_path, form):
    data = Arrays(path=write(tmp_path, form, SPLIT), class_names=["a", "b", "c", "d"], val_fraction=0.2)
    assert (data.num_classes, len(data.images("train")), len(data.images("val"))) == (4, 17, 3)
    batch = data.images("test")[list(range(10))]
    assert torch.equal(batch.images, torch.from_numpy(IMAGES[20:]) / 255)
    assert batch.labels.tolist() == LABELS[20:].tolist()
    more = SPLIT | {"val_images": IMAGES[:4], "val_labels": LABELS[:4]}
    (tmp_path / "more").mkdir()
    data = Arrays(path=write(tmp_path / "more", form, more))
    assert (len(data.images("train")), len(data.images("val"))) == (20, 4)


@pytest.mark.parametrize("form", ["npz", "npy"])
def test_arrays_of_the_other_byte_order(tmp_path, form):
    """Regression: they were refused as no numbers."""
    swapped = {"images": (IMAGES / 255).astype(">f4"), "labels": LABELS.astype(">i8")}
    data = Arrays(path=write(tmp_path, form, swapped))
    assert data.num_classes == 3
    batch = data.images("test")[[0]]
    assert any(torch.equal(batch.images[0], torch.from_numpy(image / 255).float()) for image in IMAGES)


@pytest.mark.parametrize("form", ["npz", "npy", "safetensors"])
def test_fractions_without_effect_are_refused(tmp_path, form):
    with pytest.raises(SettingError, match=r"^data\.test_fraction: got 0\.3; the data give their own splits"):
        Arrays(path=write(tmp_path, form, SPLIT), test_fraction=0.3)


@pytest.mark.parametrize(
    ("images", "shape", "settings"),
    [
        (IMAGES[:, 0], (1, 5, 7), {}),
        (IMAGES.transpose(0, 2, 3, 1), (3, 5, 7), {}),
        (IMAGES[:, :, :, :3].repeat(2, 2), (3, 10, 3), {"channels_last": False}),
        (IMAGES[:, :, :, :3].repeat(2, 2), (3, 3, 10), {"channels_last": True}),
        ((IMAGES / 255).astype(np.float64), (3, 5, 7), {}),
        ((IMAGES / 255).astype(np.float16), (3, 5, 7), {}),
    ],
)
def test_layouts_and_floats(tmp_path, images, shape, settings):
    data = Arrays(path=write(tmp_path, "npy", {"images": images, "labels": LABELS[:, None]}), **settings)
    assert data.image_shape == shape
    batch = next(iter(data.test_dataloader()))
    assert batch.images.dtype == torch.float32
    assert batch.images.shape == (6, *shape)
    assert 0.9 < batch.images.max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": IMAGES.astype(np.int64)},
            r"^data\.path, images of .*: got 'int64 of shape .*'; give uint8, or",
        ),
        ({"images": IMAGES / 100}, r"^data\.path, images of .*: got 'values from 0 to 2\.55'; give floats in \[0, 1\]"),
        ({"images": IMAGES / np.nan}, r"got 'values from nan to nan'"),
        ({"images": IMAGES[:, 0, 0]}, r"got 'uint8 of shape \(30, 7\)'; give shape \(N, H, W\), "),
        ({"images": IMAGES[:, :2]}, r"got 'uint8 of shape \(30, 2, 5, 7\)'; say where the channels are by data"),
        (
            {"labels": LABELS[:9]},
            r"^data\.path, labels of .*: got 'shape \(9,\)'; give one label for each of 30 images",
        ),
        ({"labels": LABELS / 2}, r"^data\.path, labels of .*: got 'torch\.float64'; give classes as whole"),
        ({"labels": LABELS - 1}, r"^data\.path, labels of .*: got -1; give classes from 0"),
        ({"labels": LABELS * 0}, r"^data\.path: got \['0'\]; give at least two different classes"),
        ({"labels": None}, r"^data\.path: got '.*\.npz'; there is no array 'labels' beside images; give one array"),
        ({"images": None, "labels": None}, r"^data\.path: got '.*\.npz'; it holds no arrays; give an npz or"),
    ],
)
def test_wrong_arrays(tmp_path, changes, message):
    arrays = {name: array for name, array in (ALL | changes).items() if array is not None}
    with np.errstate(all="ignore"), pytest.raises(SettingError, match=message):
        Arrays(path=write(tmp_path, "npz", arrays)).setup("test")


def test_a_label_beyond_all_images_is_named(tmp_path):
    """Regression: a list with a name for each class filled the memory."""
    labels = np.arange(20) % 4
    labels[3] = 10**9
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 1, 4, 4), np.uint8), labels=labels)
    with pytest.raises(SettingError, match=r"^data\.path: got .a label of 1000000000.; there are not so many images"):
        Arrays(path=str(tmp_path / "a.npz"))


def test_arrays_in_bfloat16_have_keys(tmp_path):
    """Regression: the first checkpoint ended in a traceback. Keys of other types are as they were."""
    images = (torch.arange(20 * 16).view(20, 1, 4, 4) / 320).bfloat16()
    save_tensors({"images": images, "labels": torch.arange(20) % 4}, tmp_path / "a.safetensors")
    data = Arrays(path=str(tmp_path / "a.safetensors"))
    assert len(set(data.keys("train").tolist())) == len(data.images("train"))


def test_wrong_files(tmp_path):
    formats = "give an npz or a safetensors file, or a folder of npy files"
    with pytest.raises(SettingError, match=rf"^data\.path: got 'a\.pkl'; {formats}"):
        Arrays(path="a.pkl")
    with pytest.raises(SettingError, match=rf"cannot read it \(No such file or directory\); {formats}"):
        Arrays(path="absent.npz")
    for name in ("a.npz", "a.safetensors"):
        (tmp_path / name).write_bytes(b"damaged")
        with pytest.raises(SettingError, match=rf"^data\.path: got '.*{name}'; cannot read it \(.+\); {formats}"):
            Arrays(path=str(tmp_path / name))
    np.savez(tmp_path / "o.npz", images=np.array([object()]), labels=LABELS)
    with pytest.raises(SettingError, match=r"o\.npz'; cannot read it \(Object arrays cannot be loaded"):
        Arrays(path=str(tmp_path / "o.npz"))
    (tmp_path / "npy").mkdir()
    with pytest.raises(SettingError, match=rf"^data\.path: got '{tmp_path / 'npy'}'; it holds no arrays; {formats}"):
        Arrays(path=str(tmp_path / "npy"))
    (tmp_path / "npy" / "images.npy").write_bytes(b"damaged")
    np.save(tmp_path / "npy" / "labels.npy", LABELS)
    with pytest.raises(SettingError, match=r"^data\.path: got 'images'; cannot read this array"):
        Arrays(path=str(tmp_path / "npy"))
    with pytest.raises(SettingError, match=r"^data\.class_names: got \['a', 'b'\]; the labels go up to 2; name at"):
        Arrays(path=write(tmp_path, "npz", ALL), class_names=["a", "b"])


def test_a_split_that_is_absent(tmp_path):
    arrays = {name: array for name, array in SPLIT.items() if "test" not in name}
    with pytest.raises(SettingError, match=r"^data\.path: .*there are no images of the split test"):
        Arrays(path=write(tmp_path, "npz", arrays)).images("test")


def test_labels_that_begin_with_1_are_warned_of(tmp_path):
    data = Arrays(path=write(tmp_path, "npz", {"images": IMAGES, "labels": LABELS + 1}))
    with pytest.warns(UserWarning, match=r"data\.\w+: no training image has label 0; labels are whole numbers from 0"):
        data.images("train")
    data = Arrays(path=write(tmp_path, "npz", {"images": IMAGES, "labels": 2 * LABELS}))
    with pytest.warns(UserWarning, match=r"data\.\w+: no training image has label 1, 3"):
        data.images("train")


def test_images_without_labels(tmp_path):
    path = write(tmp_path, "npz", ALL)
    new = write(tmp_path, "safetensors", {"images": IMAGES[:4]})
    (batch,) = Arrays(path=path, predict_from=new).predict_dataloader()
    assert torch.equal(batch, torch.from_numpy(IMAGES[:4]))
    wrong = write(tmp_path, "npy", {"images": IMAGES[:4, :, :3]})
    with pytest.raises(SettingError, match=r"^predict images: got \(3, 3, 7\); give the shape \(3, 5, 7\)"):
        Arrays(path=path, predict_from=wrong).images("predict")


def test_a_text_array_that_nobody_needs_is_no_fault(tmp_path):
    """Regression: the whole file was refused; of a needed array, the error did not name it."""
    images, names = np.zeros((20, 4, 4), np.uint8), np.array(["r", "g"])
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(20) % 2, class_names=names)
    data = Arrays(path=str(tmp_path / "a.npz"))
    data.setup("fit")
    assert data.num_classes == 2
    np.savez(tmp_path / "b.npz", images=images, labels=names[np.arange(20) % 2])
    with pytest.raises(SettingError, match=r"^data\.path: got 'labels'; cannot read this array \(.*give numbers"):
        Arrays(path=str(tmp_path / "b.npz")).setup("fit")
