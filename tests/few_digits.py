"""The digits with a prime number of test images, which several processes cannot share equally."""

from datamodules import Digits


class FewDigits(Digits):
    """Digits with 31 test images."""

    def load(self, split):
        images = super().load(split)
        return type(images)(images.images[-31:], images.labels[-31:], self.num_classes) if split == "test" else images
