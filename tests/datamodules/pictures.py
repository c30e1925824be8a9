"""Small image files of classes that differ in colour, for the tests of own data."""

import numpy as np
from PIL import Image

ENDINGS = ("png", "jpg", "webp")
COLOURS = np.eye(3, dtype=np.uint8) * 120


def write_classes(root, counts, size=(14, 18)):
    """Images ``root/<class>/<class> <number>.<ending>`` of all formats; ``counts`` maps classes to their numbers."""
    rng = np.random.default_rng(0)
    for index, (name, count) in enumerate(counts.items()):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(count):
            noise = rng.integers(0, 60, (*size, 3), dtype=np.uint8)
            save(folder / f"{name} {number}.{ENDINGS[number % 3]}", noise + COLOURS[index % 3])
    return root


def save(path, pixels, **options):
    """Write pixels (H, W) or (H, W, C), uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path
