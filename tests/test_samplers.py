"""Evaluations of a user's own loaders accept only samplers that give each image once and in order."""

import pytest
import torch
from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from torch import nn
from torch.multiprocessing.spawn import ProcessException
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from datamodules import Digits
from lightning_modules import AdversarialTraining
from robust.errors import SettingError
from tests.callbacks.trained import trainer_with

X = torch.rand(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10)


def module():
    return AdversarialTraining(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), epsilon=0.1)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_sampler_that_repeats_images_is_refused(stage):
    """Regression: with five images in two processes, one counted twice."""
    for count in (4, 5):
        data = TensorDataset(X[:count], Y[:count])
        sampler = DistributedSampler(data, num_replicas=2, rank=0, shuffle=False)
        trainer, given = trainer_with(use_distributed_sampler=False), DataLoader(data, 2, sampler=sampler)
        if count == 4:
            getattr(trainer, stage)(module(), given, verbose=False)
            continue
        with pytest.raises(SettingError, match=r"^data: got '5 images in 2 processes'; the loader's sampler"):
            getattr(trainer, stage)(module(), given, verbose=False)


def test_a_wrapped_sampler_of_a_part_that_repeats_images_is_refused():
    """Regression: three of four images in two processes passed, since the data has four; one counted twice."""
    data, part = TensorDataset(X[:4], Y[:4]), TensorDataset(X[:3], Y[:3])
    sampler = DistributedSamplerWrapper(SequentialSampler(part), num_replicas=2, rank=0, shuffle=False)
    trainer = trainer_with(use_distributed_sampler=False)
    with pytest.raises(
        SettingError, match=r"^data: got '3 images in 2 processes'; the loader's sampler repeats images"
    ):
        trainer.test(module(), DataLoader(data, 1, sampler=sampler), verbose=False)


class Chosen(Sampler):
    def __init__(self, indices):
        self.indices = indices

    def __iter__(self):
        return iter(self.indices)

    def __len__(self):
        return len(self.indices)


class Pairs(BatchSampler):
    def __iter__(self):
        return iter([[1, 0], [3, 2]])


def shuffles(loader):
    inner = getattr(loader.batch_sampler or loader.sampler, "sampler", None)
    return isinstance(inner, RandomSampler)


@pytest.mark.parametrize(
    "loader",
    [
        lambda data: DataLoader(data, 2, shuffle=True),
        lambda data: DataLoader(data, 2, sampler=SubsetRandomSampler(range(4))),
        lambda data: DataLoader(data, 2, sampler=WeightedRandomSampler([1.0] * 4, 4)),
        lambda data: DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 2, drop_last=False)),
        lambda data: DataLoader(data, None, sampler=BatchSampler(RandomSampler(data), 2, drop_last=False)),
        # as Lightning wraps it in two processes
        lambda data: DataLoader(data, 2, sampler=DistributedSamplerWrapper(SubsetRandomSampler(range(4)), 2, 0, False)),
        lambda data: DataLoader(data, 2, sampler=Chosen([3, 1, 0, 2])),
        lambda data: DataLoader(data, 2, sampler=range(2, 4)),
        lambda data: DataLoader(data, batch_sampler=[[3, 1], [0, 2]]),
        lambda data: DataLoader(data, batch_sampler=Pairs(SequentialSampler(data), 2, drop_last=False)),
    ],
)
@pytest.mark.filterwarnings("ignore:Your `test_dataloader`'s sampler has shuffling enabled")
def test_a_loader_that_shuffles_is_refused_in_evaluations(loader):
    """Regression: samplers of batches, of subsets and of the user were not seen; verdicts had other images' indices."""
    given = loader(TensorDataset(X[:4], Y[:4]))
    remedy = "shuffle=False" if shuffles(given) else "no sampler, and torch.utils.data.Subset for some of the images"
    with pytest.raises(SettingError, match=rf"^data: got 'a loader with \w+'; .* order; give {remedy}$"):
        trainer_with().test(module(), given, verbose=False)


@pytest.mark.parametrize(
    "loader",
    [
        lambda data, count: DataLoader(data, count, drop_last=True),
        lambda data, count: DataLoader(
            data, batch_sampler=BatchSampler(SequentialSampler(data), count, drop_last=True)
        ),
        lambda data, count: DataLoader(
            data, None, sampler=BatchSampler(SequentialSampler(data), count, drop_last=True)
        ),
        lambda data, count: DataLoader(IterableImages(), count, drop_last=True),
    ],
)
def test_a_loader_that_leaves_out_the_last_images_is_refused(loader):
    """Regression: the accuracy was that of the other images."""
    data = TensorDataset(X, Y)
    with pytest.raises(SettingError, match=r"^data: got 'a loader with drop_last=True'; it leaves out the last images"):
        trainer_with().test(module(), loader(data, 4), verbose=False)
    if not isinstance(loader(data, 5).dataset, IterableImages):
        trainer_with().test(module(), loader(data, 5), verbose=False)  # all images are in full batches


class IterableImages(IterableDataset):
    """The images without a length."""

    def __iter__(self):
        return iter(TensorDataset(X, Y))


@pytest.mark.parametrize("function", ["fit", "validate", "test"])
def test_several_loaders_are_refused(function):
    """Regression: Lightning's remedy was another signature, which would number the images of the first loader alone."""
    loader = DataLoader(TensorDataset(X, Y), 5)
    given = (loader, [loader, loader]) if function == "fit" else ({"a": loader, "b": loader},)
    with pytest.raises(SettingError, match=r"^data: got '2 loaders'; .* give one, such as of a ConcatDataset"):
        getattr(trainer_with(max_epochs=1, num_sanity_val_steps=0), function)(module(), *given)


@pytest.mark.parametrize("stage", ["test", "predict"])
def test_our_samplers_and_batches_of_ordered_samplers_are_taken_without_a_data_module(stage):
    data = Digits(eval_batch_size=64)
    data.prepare_data()
    data.setup("test")
    ordered = TensorDataset(X, Y)
    batches = DataLoader(ordered, batch_sampler=BatchSampler(SequentialSampler(ordered), 4, drop_last=False))
    for given in (data.test_dataloader(), batches, DataLoader(Subset(ordered, [5, 2]), 1)):
        assert getattr(trainer_with(), stage)(module(), given)


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler` with the dataloaders")
def test_a_random_order_behind_lightnings_sampler_is_refused_in_two_processes(tmp_path):
    loader = DataLoader(TensorDataset(X, Y), 2, sampler=SubsetRandomSampler(range(4)))
    trainer = trainer_with(devices=2, strategy="ddp_fork")
    with pytest.raises(ProcessException, match="data: got 'a loader with SubsetRandomSampler'; an evaluation records"):
        trainer.test(module(), loader, verbose=False)


def test_a_loader_that_gives_all_images_to_each_of_two_processes_is_refused():
    """Regression: each image counted twice, with the index of another."""
    trainer = trainer_with(devices=2, strategy="ddp_fork", use_distributed_sampler=False)
    with pytest.raises(ProcessException, match="data: got 'a loader with SequentialSampler'; each of the 2 processes"):
        trainer.test(module(), DataLoader(TensorDataset(X, Y), 2), verbose=False)
