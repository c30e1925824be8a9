"""Methods and evaluations on a user's own loaders: of uneven batches, without length, of other data in a second fit."""

import json

import pytest
import torch
from pytorch_lightning.callbacks import LambdaCallback
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from callbacks import CertifiedEvaluation, CertifiedVolume, EpsilonScheduler, Progress, Results
from datamodules import Digits
from lightning_modules import (
    MNGAC,
    AdversarialBNN,
    AdversarialTraining,
    ContextualBudgets,
    FreeAdversarialTraining,
    InstanceAdaptiveTraining,
    OnManifoldAdversarialTraining,
)
from robust.attacks import PGD
from robust.errors import SettingError
from robust.networks import Autoencoder, BayesianWeights, ConvolutionalBudgetGenerator, NoiseGenerator, divergence
from robust.schedules import PiecewiseLinear
from tests.callbacks.trained import small, trainer_with

X = torch.rand(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10)


def loader(count=10, batch_size=4, **settings):
    return DataLoader(TensorDataset(X[:count], Y[:count]), batch_size, **settings)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def fit(module, data, *callbacks, **settings):
    trainer_with(*callbacks, max_epochs=1, **settings).fit(module, data)


@pytest.mark.parametrize("count", [10, 9])
def test_free_training_takes_a_smaller_last_batch(count):
    """Regression: the perturbation of a batch had to have the size of the next."""
    module = FreeAdversarialTraining(linear(), epsilon=0.1, replays=2)
    trainer_with(max_epochs=2).fit(module, loader(count))
    assert module._perturbation.shape == (4, 1, 28, 28)
    assert module._perturbation.abs().amax() <= 0.1


def test_the_images_of_a_smaller_batch_leave_the_perturbation_of_the_others():
    module, perturbations = FreeAdversarialTraining(linear(), epsilon=0.1, replays=1), []
    noted = LambdaCallback(on_train_batch_end=lambda *_: perturbations.append(module._perturbation.clone()))
    fit(module, loader(10, batch_size=8), noted)
    before, after = perturbations
    assert torch.equal(after[2:], before[2:])
    assert not torch.equal(after[:2], before[:2])


@pytest.mark.parametrize("function", ["fit", "validate", "test"])
@pytest.mark.parametrize("method", [AdversarialTraining, ContextualBudgets])
def test_the_default_verifier_needs_no_data_module(function, method):
    """Regression: the evaluation asked for it before the module had seen an image."""
    generator = {"generator": ConvolutionalBudgetGenerator(1)} if method is ContextualBudgets else {}
    module = method(small(), epsilon=0.1, **generator)
    trainer = trainer_with(CertifiedEvaluation(), max_epochs=1, num_sanity_val_steps=0)
    data = (loader(), loader()) if function == "fit" else (loader(),)
    getattr(trainer, function)(module, *data)
    stage = "test" if function == "test" else "val"
    assert any(name.startswith(f"{stage}/certified_accuracy/") for name in trainer.callback_metrics)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def test_data_without_a_length_trains_by_a_constant_schedule():
    """Regression: the number of batches, infinite, was made a whole number."""
    fit(AdversarialTraining(linear(), epsilon=0.1), DataLoader(Stream(), 4), EpsilonScheduler())


def test_a_divergence_needs_the_number_of_images():
    """Regression: it ended in a TypeError."""
    network = BayesianWeights(linear())
    with pytest.raises(SettingError, match="data: got 'Stream without a length'; the divergence is divided by the num"):
        fit(AdversarialBNN(network, epsilon=0.1), DataLoader(Stream(), 4), EpsilonScheduler())


def test_a_divergence_is_that_of_the_images_that_a_sampler_gives():
    """Regression: it was divided by the length of the data set."""
    module = AdversarialBNN(BayesianWeights(linear()), epsilon=0.1, attack=PGD(1))
    loader = DataLoader(TensorDataset(X, Y), 4, sampler=SubsetRandomSampler(range(8)))
    fit(module, loader, EpsilonScheduler())
    kl = divergence(module.classifier, module.prior_std)
    torch.testing.assert_close(module.kl_per_image(), kl / 8, rtol=1e-6, atol=0)


def test_the_record_counts_the_images_that_an_epoch_trains_on(tmp_path):
    """Regression: the incomplete last batch, which our sampler leaves out, was counted."""
    trainer = trainer_with(Progress(), Results(), default_root_dir=tmp_path, max_epochs=1, limit_val_batches=1)
    trainer.fit(AdversarialTraining(linear(), epsilon=0.1, attack=PGD(1)), Digits(batch_size=256))
    record = json.loads((tmp_path / "results.json").read_text())["fit"]
    assert record["samples"]["train"] == 1280, "of 1,298"
    assert record["training_cost"]["passes"]["classifier"]["forward"] == 2 * 1280  # one step of the attack


def test_data_without_a_length_is_tested_and_recorded(tmp_path):
    """Regression: the record was lost at the end of the test, since the number of images is not known."""
    trainer = trainer_with(Progress(), Results(), default_root_dir=tmp_path)
    trainer.test(AdversarialTraining(linear(), epsilon=0.1), DataLoader(Stream(), 4))
    record = json.loads((tmp_path / "results.json").read_text())["test"]
    assert record["samples"] == {}
    assert "test/accuracy/clean" in record["metrics"]


@pytest.mark.parametrize(
    ("schedule", "lr_scheduler", "message"),
    [
        (EpsilonScheduler(shape="linear", length=1), None, "epsilon_schedule.shape: got 'linear'; the loader has no "),
        (EpsilonScheduler(), "ramp", "lr_scheduler: got 'PiecewiseLinear'; the loader has no length"),
    ],
)
def test_what_counts_batches_needs_their_number(schedule, lr_scheduler, message):
    given = {} if lr_scheduler is None else {"lr_scheduler": lambda each: PiecewiseLinear(each, [0, 1], [1, 0])}
    with pytest.raises(SettingError, match=message):
        fit(AdversarialTraining(linear(), epsilon=0.1, **given), DataLoader(Stream(), 4), schedule)
    module = AdversarialTraining(linear(), epsilon=0.1, **given)
    fit(module, DataLoader(Stream(), 4), schedule, limit_train_batches=2)


def test_certificates_of_data_without_a_length():
    """Regression: the number of images whose margins are recorded needs a length, as does a draw of images."""
    trainer = trainer_with(CertifiedEvaluation())
    trainer.test(AdversarialTraining(linear(), epsilon=0.1), DataLoader(Stream(), 4), verbose=False)
    assert any(name.startswith("test/certified_accuracy/") for name in trainer.callback_metrics)
    named = {"one": DataLoader(TensorDataset(X, Y), 4)}
    trainer_with(CertifiedEvaluation()).test(AdversarialTraining(linear(), epsilon=0.1), named, verbose=False)
    with pytest.raises(SettingError, match=r"^data: got 'a test loader without a length'; CertifiedVolume draws its"):
        trainer_with(CertifiedVolume(num_samples=3)).test(
            AdversarialTraining(linear(), epsilon=0.1), DataLoader(Stream(), 4), verbose=False
        )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_that_are_not_int64_are_named(dtype):
    data = DataLoader(TensorDataset(X, Y.to(dtype)), 4)
    with pytest.raises(SettingError, match=rf"labels of .*: got '{dtype}'; give int64 classes: labels.long"):
        fit(AdversarialTraining(linear(), epsilon=0.1), data)


def test_a_second_fit_starts_with_radii_of_its_own():
    """Regression: images got the radii of other data."""
    module = InstanceAdaptiveTraining(linear(), epsilon=0.1, discretization=0.02, warmup_epochs=0, attack=PGD(1))
    trainer_with(max_epochs=1, limit_train_batches=2).fit(module, Digits(batch_size=32))
    assert (module.radii != 0.1).any()
    module.radii = torch.full((3,), 0.7)  # as of other data
    trainer_with(max_epochs=1, limit_train_batches=1).fit(module, Digits(batch_size=32))
    assert module.radii.shape == (1298,)
    assert (module.radii - 0.1).abs().max() <= 0.021


def test_a_ramp_scales_the_radii_of_training_images_alone():
    sizes = []

    class Measured(PGD):
        def __call__(self, network, threat_model, x, y):
            sizes.append({round(size, 5) for size in threat_model.budgets.flatten().tolist()})
            return super().__call__(network, threat_model, x, y)

    settings = {"epsilon": 0.2, "discretization": 0.05, "smoothing": 1.0, "warmup_epochs": 1, "attack": Measured(1)}
    ramp = EpsilonScheduler(shape="linear", start_epoch=1, length=2)
    trainer = trainer_with(ramp, max_epochs=2, limit_train_batches=2, limit_val_batches=0)
    trainer.fit(InstanceAdaptiveTraining(linear(), **settings), Digits(batch_size=32))
    warm, first, second = sizes[:2], sizes[2:5], sizes[5:]
    assert warm == [{0.0}, {0.05}]
    assert 0.25 in first[0]
    assert 0.2 in first[1]
    assert first[2] <= {0.5 * 0.25, 0.5 * 0.2, 0.5 * 0.15}
    assert second[2] <= {0.75 * 0.25, round(0.75 * 0.2, 5), round(0.75 * 0.15, 5)}


def test_radii_of_another_number_of_images_are_refused(tmp_path):
    module = InstanceAdaptiveTraining(linear(), epsilon=0.1, discretization=0.02, warmup_epochs=0, attack=PGD(1))
    trainer = trainer_with(max_epochs=1, limit_train_batches=1)
    trainer.fit(module, Digits(batch_size=32))
    trainer.save_checkpoint(tmp_path / "radii.ckpt")
    checkpoint = torch.load(tmp_path / "radii.ckpt", weights_only=True)
    torch.save(checkpoint | {"radii": torch.full((3,), 0.1)}, tmp_path / "other.ckpt")
    with pytest.raises(SettingError, match=r"^ckpt_path: got 'radii of 3 images'; the data has 1298"):
        trainer_with(max_epochs=2).fit(module, Digits(batch_size=32), ckpt_path=tmp_path / "other.ckpt")


def test_on_manifold_training_runs_in_bf16(tmp_path):
    """Regression: decoded images were of another type than those that they replace."""
    autoencoder, path = Autoencoder(code_size=2, width=1), tmp_path / "autoencoder.ckpt"
    state = {f"autoencoder.{name}": weight for name, weight in autoencoder.state_dict().items()}
    torch.save({"state_dict": state}, path)
    module = OnManifoldAdversarialTraining(linear(), autoencoder, autoencoder_checkpoint=str(path))
    fit(module, loader(8), precision="bf16-mixed")


def test_mng_ac_trains_a_network_with_frozen_weights():
    """Regression: the step ahead asked for the gradient of all weights."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10))
    network[1].weight.requires_grad_(False)
    before = network[1].weight.clone()
    fit(MNGAC(network, NoiseGenerator(1), attack_linf=PGD(1)), loader(8))
    assert torch.equal(network[1].weight, before)


class Sized(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(X)


def test_predictions_of_data_without_a_length_after_others():
    """Regression: the check of samplers asked for the number of batches."""
    module, trainer = AdversarialTraining(linear(), epsilon=0.1), trainer_with()
    trainer.test(module, loader(), verbose=False)
    predicted = trainer.predict(module, DataLoader(Sized(), 4))
    assert sum(len(batch["prediction"]) for batch in predicted) == 10
