"""Base of the data sets of corrupted copies of another data set's test images: only a test split, in groups."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from datamodules.base import Split
from datamodules.files import ImageFiles
from datamodules.loading import LabelledImages
from robust.errors import SettingError, require


class CorruptedCopies(ImageFiles):
    """Copies of test images under corruptions; a data set also implements :attr:`groups` and :meth:`copies`.

    Errors are those of :class:`~datamodules.files.ImageFiles`, and one for a corruption that is not in the data set.

    Args:
        corruption: name of one of the class's ``corruptions``, or ``all``.
        root: folder of all data sets.
        download: whether to download the files if they are absent.
        eval_batch_size: number of images in a step, over all processes.
        num_workers: number of loader processes.

    Attributes:
        corruptions: names of the corruptions, in order.
        original: name of the data set of the uncorrupted test images.
        archive: name of the published archive; the download checks its ``md5``. The unpacked files have no checksums.
        images_per_group: number of test images in a group.
    """

    corruptions: ClassVar[tuple[str, ...]]
    original: ClassVar[str]
    archive: ClassVar[str]
    md5: ClassVar[str]
    images_per_group: ClassVar[int] = 10_000

    def __init__(
        self,
        *,
        corruption: str = "all",
        root: str | None = None,
        download: bool = False,
        eval_batch_size: int = 256,
        num_workers: int = 0,
    ) -> None:
        super().__init__(root=root, download=download, eval_batch_size=eval_batch_size, num_workers=num_workers)
        remedy = f"give all, or one of {', '.join(self.corruptions)}"
        require(corruption in (*self.corruptions, "all"), "data.corruption", corruption, remedy)
        self.corruption = corruption

    @property
    def names(self) -> tuple[str, ...]:
        """The corruptions in use, in order."""
        return self.corruptions if self.corruption == "all" else (self.corruption,)

    @property
    @abstractmethod
    def groups(self) -> dict[str, int]:
        """Number of images of each group, in the order of the test images; each group has copies of all test images."""

    @abstractmethod
    def copies(self) -> LabelledImages:
        """Read the copies."""

    def fetch(self) -> None:
        """Download and unpack the archive, unless its folder exists."""
        from torchvision.datasets.utils import download_and_extract_archive  # here, since the import takes seconds

        if not (self.folder / self.location).is_dir():
            download_and_extract_archive(
                f"{self.url}?download=1", str(self.folder), filename=self.archive, md5=self.md5
            )

    def load(self, split: Split) -> LabelledImages:
        """Read the test images.

        Raises:
            SettingError: for another split.
        """
        if split != "test":
            remedy = f"it has only test images, for test and predict; train and validate on {self.original}"
            raise SettingError("data", type(self).__name__, remedy)
        return self.copies()
