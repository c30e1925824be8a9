"""Image files of every colour mode, size and orientation become bytes of one shape."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from datamodules.decoding import list_images, read_image
from robust.errors import SettingError
from tests.datamodules.pictures import save

SHAPE = (3, 4, 6)
RNG = np.random.default_rng(1)
PIXELS = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)


def read(path, shape=SHAPE, resize="crop"):
    return read_image(path, shape, resize, "data.root")


def as_tensor(image):
    return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)


def on_white(image):
    white = Image.new("RGBA", image.size, "white")
    return as_tensor(Image.alpha_composite(white, image.convert("RGBA")))


@pytest.mark.parametrize(("ending", "options"), [("png", {}), ("webp", {"lossless": True})])
def test_an_image_of_the_right_size_keeps_its_bytes(tmp_path, ending, options):
    path = save(tmp_path / f"ä b.{ending}", PIXELS, **options)
    assert torch.equal(read(path), torch.from_numpy(PIXELS).movedim(-1, 0))


def test_jpeg_in_colour_and_in_cmyk(tmp_path):
    path = tmp_path / "a.jpg"
    for mode in ("RGB", "CMYK"):
        Image.new("RGB", (6, 4), (200, 100, 50)).convert(mode).save(path)
        expected = as_tensor(Image.open(path)).float()
        assert (read(path).float() - expected).abs().max() <= 3  # decoders round differently


@pytest.mark.parametrize("mode", ["L", "1", "P", "I;16"])
def test_opaque_modes(tmp_path, mode):
    """Palettes and bits without transparency are opaque, and grey images get three equal channels."""
    grey = PIXELS[..., 0]
    if mode == "I;16":
        image, expected = Image.fromarray(grey.astype(np.uint16) * 257), as_tensor(Image.fromarray(grey))
    else:
        image = Image.fromarray(PIXELS if mode == "P" else grey).convert(mode)
        expected = as_tensor(image)
    image.save(tmp_path / "a.png")
    assert torch.equal(read(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_transparent_pixels_are_composited_on_white(tmp_path, ending):
    alpha = RNG.integers(0, 256, (4, 6, 1), dtype=np.uint8)
    alpha[0] = 0
    path = save(
        tmp_path / f"a.{ending}",
        np.concatenate([PIXELS, alpha], -1),
        **({"lossless": True} if ending == "webp" else {}),
    )
    found = read(path)
    assert (found[:, 0] == 255).all()
    assert (found.int() - on_white(Image.open(path)).int()).abs().max() <= 1


@pytest.mark.parametrize("mode", ["P", "L", "LA", "1", "RGB"])
def test_transparency_of_other_modes(tmp_path, mode):
    image = Image.fromarray(PIXELS).quantize(4) if mode == "P" else Image.fromarray(PIXELS).convert(mode)
    if mode == "LA":
        image.putalpha(Image.fromarray(PIXELS[..., 1]))
        options = {}
    else:
        corner = image.getpixel((0, 0))
        options = {"transparency": corner}
    image.save(tmp_path / "a.png", **options)
    expected = on_white(Image.open(tmp_path / "a.png"))
    assert (read(tmp_path / "a.png").int() - expected.int()).abs().max() <= 1
    assert mode == "LA" or (read(tmp_path / "a.png")[:, 0, 0] == 255).all()


@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / f"a.{ending}"
    pixels = np.kron(PIXELS[:2, :2], np.ones((16, 16, 1), np.uint8))[:, :24]  # blocks that JPEG hardly changes
    Image.fromarray(pixels).save(path, exif=exif, **({"lossless": True} if ending == "webp" else {"quality": 100}))
    expected = as_tensor(ImageOps.exif_transpose(Image.open(path)))
    found = read(path, tuple(expected.shape))
    assert (found.int() - expected.int()).abs().float().mean() < (3 if ending == "jpg" else 1e-6)


class TestSize:
    def test_crop_keeps_the_middle_and_stretch_keeps_everything(self, tmp_path):
        pixels = np.zeros((8, 24, 3), np.uint8)
        pixels[:, 8:16] = 200  # the middle
        path = save(tmp_path / "a.png", pixels)
        assert (read(path, (3, 8, 8)) == 200).all()
        stretched = read(path, (3, 8, 8), "stretch")
        assert stretched[:, :, 0].max() == 0
        assert stretched[:, :, 4].min() == 200

    def test_the_short_side_decides(self, tmp_path):
        """Enlarged and reduced images cover the target, and are as Pillow's antialiased ones."""
        pixels = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        path = save(tmp_path / "a.png", pixels)
        expected = as_tensor(Image.fromarray(pixels).resize((20, 15), Image.Resampling.BILINEAR))[:, :, 2:17]
        assert (read(path, (3, 15, 15)).int() - expected.int()).abs().max() <= 1
        assert read(path, (3, 90, 33)).shape == (3, 90, 33)
        assert read(path, (3, 1, 1)).shape == (3, 1, 1)

    def test_one_channel_is_the_luma(self, tmp_path):
        grey = PIXELS[..., 0]
        assert torch.equal(read(save(tmp_path / "g.png", grey), (1, 4, 6)), torch.from_numpy(grey)[None])
        expected = torch.from_numpy(np.array(Image.fromarray(PIXELS).convert("L")))[None]
        found = read(save(tmp_path / "c.png", PIXELS), (1, 4, 6))
        assert (found.int() - expected.int()).abs().max() <= 1


class TestDamage:
    @pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
    def test_a_cut_file_is_named(self, tmp_path, ending):
        path = save(tmp_path / f"ü.{ending}", RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        path.write_bytes(path.read_bytes()[:-300])
        with pytest.raises(
            SettingError, match=rf"^data\.root: got '.*ü\.{ending}'; cannot read this image \(.+\); repair"
        ):
            read(path)

    @pytest.mark.parametrize(
        ("content", "reason"), [(b"", "the file is empty"), (b"no image", "Unsupported image file")]
    )
    def test_other_content(self, tmp_path, content, reason):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(SettingError, match=reason):
            read(tmp_path / "a.png")

    def test_several_frames(self, tmp_path):
        frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        (tmp_path / "a.gif").rename(tmp_path / "a.png")
        with pytest.raises(SettingError, match="it has several frames"):
            read(tmp_path / "a.png")

    def test_an_animated_png(self, tmp_path):
        """Regression: its first frame was taken without a word."""
        frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
        frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
        with pytest.raises(SettingError, match="it has several frames"):
            read(tmp_path / "a.png")

    def test_an_absent_file(self, tmp_path):
        with pytest.raises(SettingError, match="No such file or directory"):
            read(tmp_path / "a.png")


class TestListing:
    def test_hidden_files_are_skipped(self, tmp_path):
        path = save(tmp_path / "sub" / "a.PNG", PIXELS, format="PNG")
        for name in (".DS_Store", "Thumbs.db", ".hidden/b.txt"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        assert list_images(tmp_path, "data.root") == [path]

    def test_another_format_is_refused(self, tmp_path):
        (tmp_path / "notes.txt").touch()
        with pytest.raises(
            SettingError, match=r"notes\.txt'; its format is not one of \.png, \.jpg, \.jpeg, \.webp; conv"
        ):
            list_images(tmp_path, "data.root")

    def test_an_empty_folder_is_refused(self, tmp_path):
        with pytest.raises(SettingError, match=r"^data\.root: got '.*'; the folder has no images; give files"):
            list_images(tmp_path, "data.root")
