"""Decodes image files of any size and colour mode to bytes of one shape, by documented steps."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.loading import ImageFileError
from robust.errors import SettingError, require

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")
_PNG = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3
_ORIENTATION = 0x112  # EXIF tag
# by EXIF orientation: whether rows and columns are exchanged, and the dimensions of (C, H, W) that are flipped then
_TURNS = {2: (False, [2]), 3: (False, [1, 2]), 4: (False, [1]), 5: (True, []), 6: (True, [2]), 7: (True, [1, 2])}
_TURNS[8] = (True, [1])


def list_images(folder: Path, setting: str) -> list[Path]:
    """All images in a folder and its subfolders, sorted by path; hidden files and those of file managers are skipped.

    Linked folders are read, too.

    Args:
        folder: existing folder.
        setting: setting that names the folder, for errors.

    Raises:
        SettingError: if a file is of another format, a link leads nowhere or to a folder that is read already, or there
            is no image.
    """
    files = sorted(_files(folder, setting))
    for path in files:
        remedy = f"its format is not one of {', '.join(EXTENSIONS)}; convert or remove it"
        require(is_image(path), setting, str(path), remedy)
    require(len(files) > 0, setting, str(folder), f"the folder has no images; give files of {', '.join(EXTENSIONS)}")
    return files


def _files(folder: Path, setting: str) -> Iterator[Path]:
    """All files below a folder, also below links in it, without hidden ones."""
    seen: dict[str, str] = {}
    for current, folders, names in os.walk(folder, followlinks=True, onerror=_refuse(setting)):
        first = seen.setdefault(os.path.realpath(current), current)
        link, other = (current, first) if Path(current).is_symlink() else (first, current)
        remedy = f"it is the same folder as {other}, whose images would count twice; remove the link"
        require(first == current, setting, link, remedy)
        folders[:] = sorted(name for name in folders if not _is_hidden(Path(name)))
        visible = [Path(current, name) for name in names if not _is_hidden(Path(name))]
        for path in visible:
            require_target(path, setting)
        yield from (path for path in visible if path.is_file())


def _refuse(setting: str) -> Callable[[OSError], None]:
    def refuse(error: OSError) -> None:
        raise SettingError(setting, error.filename, f"it cannot be read ({error.strerror}); change its permissions")

    return refuse


def has_images(folder: Path, setting: str) -> bool:
    """Whether there is an image in a folder or below it."""
    return any(is_image(path) for path in _files(folder, setting))


def require_target(path: Path, setting: str) -> None:
    """Check that a link leads somewhere.

    Raises:
        SettingError: if it does not.
    """
    broken = path.is_symlink() and not path.exists()
    require(not broken, setting, str(path), "this link leads nowhere; mend or remove it")


def is_image(path: Path) -> bool:
    """Whether the file's name has one of ``EXTENSIONS``."""
    return path.suffix.lower() in EXTENSIONS


def subfolders(folder: Path, setting: str) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones.

    Raises:
        SettingError: if a link in it leads nowhere; it may have been one to a folder.
    """
    visible = [path for path in folder.iterdir() if not _is_hidden(Path(path.name))]
    for path in visible:
        require_target(path, setting)
    return sorted(path for path in visible if path.is_dir())


def existing_folder(folder: str, setting: str) -> Path:
    """The path of a folder, after a check that it exists.

    Raises:
        SettingError: if it does not.
    """
    path = Path(folder).expanduser()
    require(path.is_dir(), setting, folder, "there is no such folder; give the path of a folder")
    return path


def read_image(
    path: Path, image_shape: tuple[int, int, int], resize: Literal["crop", "stretch"], setting: str
) -> Tensor:
    """Decode a file to an image of ``image_shape``.

    The steps, in this order: rotate by the EXIF orientation; reduce 16 bits a channel to 8; composite transparent
    pixels on white; resize (antialiased, bilinear); for one channel, take the luma of ITU-R BT.601. The rule ``crop``
    resizes the image until it covers the target, and takes its middle; ``stretch`` ignores the aspect ratio. An image
    of the right size and mode keeps its bytes.

    Args:
        path: file with one of ``EXTENSIONS``; its content determines how it is decoded.
        image_shape: (channels, height, width), channels 1 or 3.
        resize: the rule for other sizes.
        setting: setting that the file comes from, for errors.

    Returns:
        uint8 of shape ``image_shape``.

    Raises:
        ImageFileError: if the file is absent or damaged.
    """
    channels, height, width = image_shape
    image = _on_white(_decoded(path, setting))
    if image.shape[1:] != (height, width):
        image = _resized(image, height, width, resize)
    return image.round().clamp(0, 255).byte() if channels == 3 else _grey(image)


def _decoded(path: Path, setting: str) -> Tensor:
    """The image as floats in [0, 255], shape (3, H, W) or (4, H, W)."""
    from torchvision.io import ImageReadMode, decode_image  # here, since the import takes seconds

    try:
        content = path.read_bytes()  # torchvision's own function does not say why it cannot read a file
        if not content:
            raise ValueError("the file is empty")
        webp, png = content[8:12] == b"WEBP", content.startswith(_PNG)
        mode = ImageReadMode.UNCHANGED if webp else _png_mode(content) if png else ImageReadMode.RGB
        image: Tensor = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode, True)
        if webp:
            image = _turned(image, content)
        elif png and len(image) == 3:
            image = _without_colour(image, content)
        if image.ndim != 3 or (png and 0 < content.find(b"acTL") < content.find(b"IDAT")):
            raise ValueError("it has several frames")
    except (OSError, RuntimeError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).split("\n")[0]
        reason = re.sub(r"^\S+, \S+\.cpp:\d+, ", "", reason)  # removes the line of torchvision's source
        error_ = SettingError(setting, str(path), f"cannot read this image ({reason}); repair or remove the file")
        raise ImageFileError(str(error_)) from error
    return image.float().div(257) if image.dtype == torch.uint16 else image.float()


def _png_mode(content: bytes) -> Any:
    """RGB_ALPHA for an alpha channel or a palette with transparency, else RGB.

    For palettes and 1-bit images without transparency, torchvision would add a wrong alpha channel.
    """
    from torchvision.io import ImageReadMode

    kind = content[25]
    has_alpha = kind in (4, 6) or (kind == _PALETTE and _transparency(content) is not None)
    return ImageReadMode.RGB_ALPHA if has_alpha else ImageReadMode.RGB


def _transparency(content: bytes) -> bytes | None:
    """The chunk tRNS of a PNG, which comes before the pixels; None if there is none."""
    start = len(_PNG)
    while start + 8 <= len(content) and (name := content[start + 4 : start + 8]) != b"IDAT":
        size = int.from_bytes(content[start : start + 4], "big")
        if name == b"tRNS":
            return content[start + 8 : start + 8 + size]
        start += 12 + size
    return None


def _without_colour(image: Tensor, content: bytes) -> Tensor:
    """Make those pixels (3, H, W) white whose colour the PNG declares transparent; torchvision ignores this chunk."""
    chunk = _transparency(content)
    if chunk is None:
        return image
    bits = content[24]
    largest = 2**bits - 1
    # a sample has 2 bytes, of which only the image's bits count; torchvision scales fewer than 8 bits to a byte
    samples = [int.from_bytes(chunk[i : i + 2], "big") & largest for i in range(0, len(chunk), 2)]
    colour = torch.tensor(samples).view(-1, 1, 1) * (255 // largest if bits < 8 else 1)
    white = 255 if bits <= 8 else largest
    whole = image.to(torch.int32)  # torch does not compare uint16
    return whole.masked_fill((whole == colour).all(0), white).to(image.dtype)


def _turned(image: Tensor, content: bytes) -> Tensor:
    """Rotate by the EXIF orientation of a WebP file; torchvision ignores it."""
    from PIL import Image

    with Image.open(BytesIO(content)) as opened:
        exchange, flips = _TURNS.get(opened.getexif().get(_ORIENTATION, 1), (False, []))
    return (image.transpose(1, 2) if exchange else image).flip(flips)


def _on_white(image: Tensor) -> Tensor:
    """Composite (4, H, W) on white, to (3, H, W)."""
    if len(image) == 3:
        return image
    alpha = image[3:] / 255
    return image[:3] * alpha + 255 * (1 - alpha)


def _resized(image: Tensor, height: int, width: int, resize: Literal["crop", "stretch"]) -> Tensor:
    rows, columns = height, width
    if resize == "crop":
        scale = max(height / image.shape[1], width / image.shape[2])
        rows = max(height, math.floor(image.shape[1] * scale + 0.5))
        columns = max(width, math.floor(image.shape[2] * scale + 0.5))
    if image.shape[1:] != (rows, columns):
        image = F.interpolate(image[None], (rows, columns), mode="bilinear", antialias=True)[0]
    top, left = (rows - height) // 2, (columns - width) // 2
    return image[:, top : top + height, left : left + width]


def _grey(image: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    return (image * weights).sum(0, keepdim=True).round().clamp(0, 255).byte()


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts) or path.name in ("Thumbs.db", "desktop.ini", "__MACOSX")
