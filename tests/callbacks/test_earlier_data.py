"""A run on plain loaders, after one on a data module: Lightning keeps the module, but the run must not use it."""

import pytest
from torch.utils.data import DataLoader, TensorDataset

from callbacks import BudgetRegions, CertifiedEvaluation, CertifiedVolume, Results
from callbacks.pictures.base import class_name
from datamodules import Digits
from lightning_modules.base.settings import describe_data
from robust.bounds import LargestCertifiedBox
from robust.errors import SettingError
from tests.callbacks.trained import images, stored, trainer_with


class Named(Digits):
    """Digits with names of the classes and regions."""

    class_names = tuple("abcdefghij")

    def regions(self, split, indices):
        raise AssertionError("these are masks of other images")


def loader():
    """The first 40 test images."""
    x, y = images()
    return DataLoader(TensorDataset(x[:40], y[:40]), batch_size=40)


def measured_after(folder, *callbacks):
    """Metrics of a test on the loader, after one on a data module of other images."""
    trainer, module = trainer_with(default_root_dir=folder), stored()
    trainer.test(module, Named(test_images=100), verbose=False)
    trainer.callbacks.extend(callbacks)
    return trainer.test(module, dataloaders=loader(), verbose=False)[0]


def test_certified_evaluation_counts_the_images_of_the_loader(tmp_path):
    evaluation = CertifiedEvaluation(pgd_steps=0, margin_samples=10)
    measured_after(tmp_path, evaluation)
    assert evaluation.recorded.margins


def test_certified_volume_draws_from_the_images_of_the_loader(tmp_path):
    search = LargestCertifiedBox(steps=1)
    assert measured_after(tmp_path, CertifiedVolume(search, num_samples=2))["test/certified_volume/samples"] == 2


def test_regions_of_the_earlier_data_are_not_those_of_the_loader(tmp_path):
    with pytest.raises(SettingError, match=r"^BudgetRegions, data: got 'NoneType'"):
        measured_after(tmp_path, BudgetRegions())


def test_a_run_has_the_data_module_that_it_was_given(tmp_path):
    trainer, module, data = trainer_with(Results(), default_root_dir=tmp_path), stored(), Named()
    assert module.data_module is None
    trainer.test(module, data, verbose=False)
    assert module.data_module is data
    assert class_name(module, 0) == "a"
    assert describe_data(trainer)["num_classes"] == 10
    trainer.test(module, dataloaders=loader(), verbose=False)
    assert module.data_module is None
    assert class_name(module, 0) == "class 0"
    assert describe_data(trainer) == {}
    trainer.validate(module, data, verbose=False)
    assert module.data_module is data
