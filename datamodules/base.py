"""Base of the data modules: splits, loaders, the order of the images, augmentation."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor

from datamodules.augmentation import CropAndFlip, Placement
from datamodules.batches import ResumableLoader, ShardedBatches, class_p_value, part_of_batch, spread
from datamodules.loading import Batch, LabelledImages, RawImages, Unlabelled, scaled, seeded
from robust.errors import require

Split = Literal["train", "val", "test"]
Part = Split | Literal["predict"]  # the splits, and images without labels

_SPLITS_OF_STAGE: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
_LARGEST_SEED = 2**32 - 1
_SAME_CLASSES = 1e-6  # p-value below which images in equal steps are no sample of all


class ImageDataModule(LightningDataModule, ABC):
    """Base of the data modules; a data set sets its classes and shape, and implements ``load``.

    The order of training images depends on the seed alone, not on the number of processes or workers, and is the same
    after resuming. Validation, test and prediction (of the test images) use each image exactly once.

    Args:
        augmentation: augmentation of training batches, on their device; none by default.
        batch_size: number of images in a training step over all processes (the global batch); a multiple of the number
            of processes.
        eval_batch_size: number of images in a step of validation, test and prediction over all processes; no result
            depends on it, but where an evaluation takes the first batches alone.
        num_workers: number of loader processes; 0 is fastest for images in memory.
        seed: seed of the order and augmentation of training images; by default that of ``seed_everything``, else 0.
        test_images: number of images that a test takes, evenly spread over all test images and the same in every run;
            refused where these have other classes than all, since labels are in a cycle; None for all.

    Attributes:
        num_classes: number of classes.
        image_shape: (channels, height, width).
        class_names: name of each class; None if the classes have only numbers.
        predict_part: images that ``predict`` takes: ``test`` for the test split, ``predict`` for images without labels.
        shuffle_seed: seed in use; a resumed run loads it from the checkpoint.

    Raises:
        SettingError: if a setting is out of range.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None = None
    predict_part: Literal["test", "predict"] = "test"

    def __init__(
        self,
        *,
        augmentation: CropAndFlip | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int | None = None,
        test_images: int | None = None,
    ) -> None:
        super().__init__()
        require(batch_size > 0, "data.batch_size", batch_size, "give 1 or more")
        require(eval_batch_size > 0, "data.eval_batch_size", eval_batch_size, "give 1 or more")
        require(num_workers >= 0, "data.num_workers", num_workers, "give 0 or more")
        require(seed is None or 0 <= seed <= _LARGEST_SEED, "data.seed", seed, f"give 0 to {_LARGEST_SEED}, or null")
        remedy = "give 1 or more, or null for all"
        require(test_images is None or test_images > 0, "data.test_images", test_images, remedy)
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.test_images = test_images
        self.shuffle_seed = self._seed_of_run()
        self._images: dict[Part, LabelledImages] = {}
        self._indices: dict[Part, tuple[tuple[int, int], list[Tensor]]] = {}

    @abstractmethod
    def load(self, split: Split) -> LabelledImages:
        """Read one split; data sets must implement only this method (and ``prepare_data`` if they can download)."""

    def load_unlabelled(self) -> LabelledImages:
        """Read the images without labels, if ``predict_part`` is ``predict``; their labels are not used."""
        raise NotImplementedError

    def file_names(self, part: Part) -> list[str] | None:
        """The file of each image of a part, in the order of the indices; None if images have no files of their own."""
        return None

    def images(self, part: Part) -> LabelledImages:
        """The images of a split, or the images without labels, read at the first call."""
        if part not in self._images:
            loaded = self.load_unlabelled() if part == "predict" else self.load(part)
            shape = loaded.image_shape
            require(shape == self.image_shape, f"{part} images", shape, f"give the shape {self.image_shape}")
            self._images[part] = loaded
        return self._images[part]

    def setup(self, stage: str) -> None:
        """Read the splits of ``stage`` ("fit", "validate", "test" or "predict") and set the seed.

        Raises:
            SettingError: if ``trainer.overfit_batches`` is set, since Lightning would replace the samplers of batches.
        """
        overfit = getattr(self.trainer, "overfit_batches", 0)
        require(overfit == 0, "trainer.overfit_batches", overfit, "leave it at 0 and use trainer.limit_train_batches")
        if stage == "fit" and self.augmentation is not None:
            self.augmentation.check(self.image_shape)
        for part in _SPLITS_OF_STAGE.get(stage, (self.predict_part,)):
            self.images(part)
        self._indices = {}
        if stage == "fit":
            self.shuffle_seed = self._seed_of_run()
            if self.trainer is not None:  # with different seeds, the batches of processes would overlap
                self.shuffle_seed = int(self.trainer.strategy.broadcast(self.shuffle_seed))

    def indices(self, split: Part, batch_idx: int) -> Tensor:
        """Indices of the images of a split, or of the images without labels, of this process in a batch, int64 (B,).

        Training batches are those of the current epoch. If a module asks for several batches a step, these are the
        indices of the first one.
        """
        epoch = self.trainer.current_epoch if split == "train" and self.trainer is not None else 0
        order = (epoch, self.shuffle_seed)
        if split not in self._indices or self._indices[split][0] != order:
            sampler = self._batches(split)
            sampler.set_epoch(epoch)
            self._indices[split] = order, sampler.of_epoch()
        return self._indices[split][1][batch_idx]

    def spacing(self, split: Part) -> int:
        """Distance of neighbouring images' indices in an evaluation of a split: 1, or more with ``test_images``."""
        return self._batches(split).chosen.step

    def train_dataloader(self) -> ResumableLoader | CombinedLoader:
        """Shuffled training batches, or lists of independently shuffled ones if the module sets ``training_batches``.

        Raises:
            SettingError: if the batch size does not fit the processes or the images.
        """
        count = getattr(getattr(self.trainer, "lightning_module", None), "training_batches", 1)
        loaders = [self._loader("train") for _ in range(count)]
        for stream, loader in enumerate(loaders):
            assert isinstance(loader.sampler, ShardedBatches)
            loader.sampler.seed = self._stream_seed(stream)
            loader.trainer = self.trainer
        return loaders[0] if count == 1 else CombinedLoader(loaders, "min_size")

    def val_dataloader(self) -> ResumableLoader:
        """Validation batches in order."""
        return self._loader("val")

    def test_dataloader(self) -> ResumableLoader:
        """Test batches in order."""
        return self._loader("test")

    def predict_dataloader(self) -> ResumableLoader:
        """Test batches in order, or those of the images without labels."""
        return self._loader(self.predict_part)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment training batches and scale images to [0, 1], on the batch's device."""
        if isinstance(batch, list) and isinstance(batch[0], Batch):
            return [self._prepare(part, stream) for stream, part in enumerate(batch)]
        return self._prepare(batch, 0)

    def _prepare(self, batch: Any, stream: int) -> Any:
        assert self.trainer is not None
        if isinstance(batch, Tensor):  # without labels
            return self.trainer.precision_plugin.convert_input(scaled(batch))
        images, labels = batch
        if self.augmentation is not None and self.trainer.training:
            images = self.augmentation.apply(images, self._placement(self.augmentation, stream))
        return self.trainer.precision_plugin.convert_input(Batch(scaled(images), labels))

    def _placement(self, augmentation: CropAndFlip, stream: int = 0) -> Placement:
        """This process's part of the draws for the global batch, which depend only on seed, epoch and batch index."""
        assert self.trainer is not None
        index = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        # index + 1, since keys that differ in trailing zeros give the same stream, and (seed, epoch) is the order's key
        key = (self._stream_seed(stream), self.trainer.current_epoch, index + 1)
        drawn = augmentation.draw(self.batch_size, seeded(*key))
        own = part_of_batch(self.batch_size, self.trainer.world_size, self.trainer.global_rank)
        return Placement(*(values[own] for values in drawn))

    def state_dict(self) -> dict[str, Any]:
        """The classes, and the seed of the order, which a resumed run uses under another ``seed_everything``, too."""
        names = {} if self.class_names is None else {"class_names": list(self.class_names)}
        return {"shuffle_seed": self.shuffle_seed, **names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the checkpoint's seed.

        Raises:
            SettingError: if the checkpoint has no valid seed, or its classes differ from the data's.
        """
        state = state_dict if isinstance(state_dict, dict) else {}
        seed, names = state.get("shuffle_seed"), state.get("class_names")
        fits = isinstance(seed, int) and 0 <= seed <= _LARGEST_SEED
        require(fits, "ckpt_path", f"a data module's seed of {seed!r}", "give a checkpoint that fit wrote")
        assert isinstance(seed, int)
        self.shuffle_seed = seed
        if names is not None and self.class_names is not None:
            remedy = f"the checkpoint was trained with the classes {names}; give data with these classes, in this order"
            require(names == list(self.class_names), "data.class_names", list(self.class_names), remedy)

    def batches(self, images: LabelledImages, batch_size: int, *, train: bool) -> ShardedBatches:
        """Sampler of this process's indices in each batch; a data set may override it to compose training batches."""
        return ShardedBatches(images, batch_size, shuffle=train, seed=self.shuffle_seed)

    def _batches(self, part: Part) -> ShardedBatches:
        images, predicting = self.images(part), self.trainer is not None and self.trainer.predicting
        if part == "test" and self.test_images is not None and not predicting:
            remedy = f"the test has {len(images)} images; give at most that"
            require(self.test_images <= len(images), "data.test_images", self.test_images, remedy)
            chosen = spread(self.test_images, len(images))
            _require_all_classes(images.labels, chosen, self.num_classes)
            return ShardedBatches(images, self.eval_batch_size, shuffle=False, chosen=chosen)
        size = self.batch_size if part == "train" else self.eval_batch_size
        return self.batches(images, size, train=part == "train")

    def _stream_seed(self, stream: int) -> int:
        """Seed of one of the independent orders; the first order has ``shuffle_seed``."""
        return self.shuffle_seed if stream == 0 else seeded(self.shuffle_seed, stream).initial_seed()

    def _seed_of_run(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def _loader(self, part: Part) -> ResumableLoader:
        images = self.images(part)
        # with a trainer, on_after_batch_transfer scales the images
        dataset: Any = images if self.trainer is None else RawImages(images)
        dataset = Unlabelled(images) if part == "predict" else dataset
        # keyword arguments, since Lightning rebuilds the loader of predict from them
        return ResumableLoader(
            dataset=dataset,
            batch_size=None,
            sampler=self._batches(part),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            # a loader draws a number at each start; the global generator would then change the model's draws
            generator=torch.Generator().manual_seed(self.shuffle_seed),
        )


def _require_all_classes(labels: Tensor, chosen: range, num_classes: int) -> None:
    """Refuse images in equal steps that have other classes than all images, as where labels repeat in a cycle."""
    fits = class_p_value(labels, chosen, num_classes) > _SAME_CLASSES
    remedy = f"1 of {chosen.step} images has other classes than all {len(labels)}, whose order is regular; "
    remedy += "give another number, or shuffle the test images"
    require(fits, "data.test_images", len(chosen), remedy)
