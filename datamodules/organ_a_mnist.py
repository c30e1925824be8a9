"""OrganAMNIST, in MedMNIST's file format."""

from __future__ import annotations

import numpy as np
import torch

from datamodules.base import Split
from datamodules.files import ImageFiles
from datamodules.loading import TensorImages


class OrganAMNIST(ImageFiles):
    """Axial slices of abdominal CT, grey, 28x28 pixels, 11 organs: 34,561 train, 6,491 validation, 17,778 test.

    Source: J. Yang et al., MedMNIST v2 (2023), file ``organamnist.npz`` of Zenodo record 10519652 (version 3), with the
    published validation split. Arguments and errors are those of :class:`ImageFiles`.
    """

    num_classes = 11
    image_shape = (1, 28, 28)
    url = "https://zenodo.org/records/10519652/files/organamnist.npz"
    location = "organamnist.npz"
    md5 = "68e3f8846a6bd62f0c9bf841c0d9eacc"

    def fetch(self) -> None:
        """Download the file from Zenodo."""
        from torchvision.datasets.utils import download_url  # here, since the import takes seconds

        download_url(f"{self.url}?download=1", str(self.folder), self.location, self.md5)

    def load(self, split: Split) -> TensorImages:
        """Read one split."""
        path = self.checked(self.location, self.md5)

        def read() -> tuple[torch.Tensor, torch.Tensor]:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                return torch.from_numpy(file[f"{split}_images"]), torch.from_numpy(file[f"{split}_labels"])

        images, labels = self.read(path, read)
        return TensorImages(images.unsqueeze(1), labels.flatten().long(), self.num_classes)
