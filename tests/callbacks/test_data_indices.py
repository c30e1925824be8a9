"""Indices in the data of an evaluation batch: from the data module, or counted for other loaders."""

import copy
import json
from itertools import chain

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from callbacks import CertifiedEvaluation, CertifiedVolume, Predictions, Results
from callbacks.evaluation.base import Evaluation
from datamodules import Digits
from robust.errors import SettingError
from tests.callbacks.trained import images, trainer_with


class Indices(Evaluation):
    """Records the indices of each batch."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.batches = []

    def evaluate(self, module, x, y):
        assert len(self.indices) == len(x)
        self.batches.append(self.indices.tolist())


class Shifted(LightningDataModule):
    """The images from index 100 on, with a custom loader; ``indices`` returns their indices."""

    def __init__(self, first=100, step=1):
        super().__init__()
        self.first, self.step = first, step

    def test_dataloader(self):
        return DataLoader(TensorDataset(*(values[100:120] for values in images())), 8)

    def indices(self, split, batch_idx):
        assert split == "test"
        return (self.first + 8 * batch_idx + torch.arange(8))[: 20 - 8 * batch_idx] * self.step


def flat(lists):
    return list(chain.from_iterable(lists))


def test_data_modules_and_plain_loaders_give_the_same_indices(trained):
    """This holds too for a trainer that had a data module before."""
    evaluation = Indices(max_test_batches=3)
    trainer = trainer_with(evaluation)
    trainer.test(trained, datamodule=Digits(eval_batch_size=128), verbose=False)
    trainer.test(trained, DataLoader(TensorDataset(*images()), 100), verbose=False)
    assert [len(indices) for indices in evaluation.batches] == [128, 128, 43, 100, 100, 99]
    assert flat(evaluation.batches[:3]) == flat(evaluation.batches[3:]) == list(range(299))


def test_validation_is_due_in_validate_and_after_every_n_epochs_and_the_last(trained):
    settings = {"limit_train_batches": 1, "max_epochs": 5}
    for every, expected in ((None, 0), (2, 3), (3, 2), (9, 1)):
        evaluation = Indices(every_n_epochs=every, max_batches=1)
        trainer_with(evaluation, **settings).fit(copy.deepcopy(trained), datamodule=Digits())
        assert len(evaluation.batches) == expected
    evaluation = Indices(max_batches=2)
    trainer_with(evaluation).validate(trained, datamodule=Digits(eval_batch_size=16), verbose=False)
    assert evaluation.batches == [list(range(16)), list(range(16, 32))]


def test_a_data_module_of_the_user_gives_its_indices(trained):
    evaluation = Indices()
    trainer_with(evaluation).test(trained, datamodule=Shifted(), verbose=False)
    assert flat(evaluation.batches) == list(range(100, 120))
    wrong = Shifted()
    wrong.indices = lambda split, batch_idx: torch.arange(7)
    with pytest.raises(SettingError, match="data: got '7 indices of 8 images'"):
        trainer_with(Indices()).test(trained, datamodule=wrong, verbose=False)
    with pytest.raises(SettingError, match="must return indices that rise in equal steps"):
        trainer_with(Indices()).test(trained, datamodule=Shifted(step=-1), verbose=False)


class Counted(Shifted):
    """Data with an attribute ``indices`` of another meaning."""

    indices = torch.arange(40)


def test_an_attribute_indices_of_another_meaning_is_left_alone(trained):
    evaluation = Indices()
    trainer_with(evaluation).test(trained, datamodule=Counted(), verbose=False)
    assert flat(evaluation.batches) == list(range(20))


class MoreIndices(Indices):
    """A subclass, whose metrics have the same names."""


@pytest.mark.parametrize("second", [Indices, MoreIndices])
def test_metrics_of_the_same_names_are_refused_for_subclasses_too(second, trained):
    with pytest.raises(SettingError, match=r"trainer\.callbacks: got '2 x .*'; their metrics have the same names"):
        trainer_with(Indices(), second()).test(trained, datamodule=Digits(), verbose=False)


class StopsAtSecondBatch(Callback):
    """Fails once, in the second batch of a prediction."""

    failed = False

    def on_predict_batch_start(self, trainer, module, batch, batch_idx, *_):
        if batch_idx == 1 and not self.failed:
            self.failed = True
            raise KeyboardInterrupt


def test_a_stopped_prediction_leaves_no_rows(trained, tmp_path):
    trainer = trainer_with(Predictions(), StopsAtSecondBatch(), default_root_dir=tmp_path)
    with pytest.raises(SystemExit):
        trainer.predict(trained, datamodule=Digits(eval_batch_size=100))
    trainer.predict(trained, datamodule=Digits(eval_batch_size=100))
    (table,) = tmp_path.rglob("predictions.csv")
    assert len(table.read_text().splitlines()) == 1 + 299


class OfSome(Shifted):
    """Images 100 to 119 of all, chosen by a sampler."""

    def __init__(self, batches=False):
        super().__init__()
        self.by_batches = batches

    def test_dataloader(self):
        data, chosen = TensorDataset(*images()), range(100, 120)
        if self.by_batches:
            return DataLoader(data, batch_sampler=BatchSampler(chosen, 8, drop_last=False))
        return DataLoader(data, 8, sampler=chosen)


@pytest.mark.parametrize("batches", [False, True])
def test_images_that_a_sampler_chooses_are_counted(batches, trained, tmp_path):
    """Regression: records and certificates counted all images of the data set."""
    certified, results = CertifiedEvaluation(margin_samples=20), Results()
    trainer_with(certified, results, default_root_dir=tmp_path).test(trained, datamodule=OfSome(batches), verbose=False)
    record = json.loads((tmp_path / "results.json").read_text())["test"]
    assert record["samples"] == {"test": 20}
    assert record["margins"]
    trainer = trainer_with(results, default_root_dir=tmp_path, limit_test_batches=2)
    trainer.test(trained, datamodule=OfSome(batches), verbose=False)
    assert json.loads((tmp_path / "results.json").read_text())["test-2"]["samples"] == {"test": 16}


def test_volumes_are_drawn_from_all_images_of_the_data(trained):
    """Regression: they were drawn from images that the sampler left out, too."""
    message = r"^data: got 'index 107'; the test has 20 images; CertifiedVolume needs a data set of these alone"
    with pytest.raises(SettingError, match=message):
        trainer_with(CertifiedVolume(num_samples=6)).test(trained, datamodule=OfSome(), verbose=False)
