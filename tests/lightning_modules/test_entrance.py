"""Checks of images, labels and precision in training and evaluations, with any loader."""

import json
import math

import pytest
import torch
from pytorch_lightning.utilities import CombinedLoader
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from callbacks import (
    AdversarialEvaluation,
    AttackCase,
    CertifiedEvaluation,
    CertifiedVolume,
    DecisionBoundary,
    GradientMaskingChecks,
    Predictions,
    RobustnessScore,
    WeightedMinimaxEvaluation,
)
from datamodules import Digits
from datamodules.loading import Batch
from lightning_modules import (
    AdversarialTraining,
    ContextualBudgets,
    InstanceAdaptiveTraining,
    RobustnessScoreTraining,
    StandardTraining,
    WassersteinAutoencoder,
)
from robust.attacks import PGD
from robust.errors import NonFiniteLogitsError, SettingError
from robust.networks import AdversarialGenerator, Autoencoder, Normalize
from tests.callbacks.trained import small, trainer_with
from tests.testers import ROOT, run

X = torch.rand(16, 1, 28, 28, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 10
FUNCTIONS = ("fit", "validate", "test", "predict")


def call(function, module, x, y, *callbacks, batch_size=8, **settings):
    """Give a function of the Trainer a plain loader."""
    loader = DataLoader(TensorDataset(x, y), batch_size)
    settings |= {"max_epochs": 1, "num_sanity_val_steps": 0}
    return getattr(trainer_with(*callbacks, **settings), function)(module, loader)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("change", "given"),
    [
        (lambda x: (x - 0.3) / 0.3, r"values from -\d.* to \d"),
        (lambda x: x * 255, r"values from \d.* to 25\d"),
        (lambda x: x.masked_fill(x > 0.99, math.nan), "values from nan to nan"),
        (lambda x: x.masked_fill(x > 0.99, math.inf), "values from .* to inf"),
        (lambda x: x[:, 0], r"\(8, 28, 28\)"),
        (lambda x: (x * 255).byte(), "torch.uint8"),
    ],
)
def test_images_of_plain_loaders(function, change, given):
    with pytest.raises(
        SettingError, match=rf"^images of \w+ batch 0: got '?{given}.*; .*(\[0, 1\]|shape \(B, C, H, W\))"
    ):
        call(function, StandardTraining(small()), change(X), Y)


@pytest.mark.parametrize("method", [AdversarialTraining, ContextualBudgets])
def test_methods_refuse_normalised_images_and_name_the_remedy(method):
    with pytest.raises(SettingError, match=r"^images of train batch 0: .*normalise inside the network .*Normalize"):
        call("fit", method(small()), (X - 0.1307) / 0.3081, Y)


def test_a_network_of_probabilities_is_named_and_one_of_log_probabilities_is_not(recwarn):
    for last, warned in ((nn.Softmax(1), True), (nn.LogSoftmax(1), False)):
        recwarn.clear()
        call("fit", StandardTraining(nn.Sequential(small(), last)), X, Y)
        assert any("model.classifier: its outputs sum to 1" in str(each.message) for each in recwarn) == warned


def test_images_divided_by_255_twice_are_named_and_black_ones_are_not(recwarn):
    for images, warned in ((X / 255, True), (X, False), (0 * X, False)):
        recwarn.clear()
        call("validate", StandardTraining(small()), images, Y)
        assert any("divided by 255 twice?" in str(each.message) for each in recwarn) == warned


@pytest.mark.filterwarnings("ignore:Your `test_dataloader`")
def test_a_shuffled_evaluation_is_refused():
    """Regression: outcomes were recorded under the numbers of other images."""
    loader = DataLoader(TensorDataset(X, Y), 8, shuffle=True)
    with pytest.raises(SettingError, match=r"^data: got 'a loader with RandomSampler'; .* give shuffle=False"):
        trainer_with().test(StandardTraining(small()), loader)


def test_the_remedy_works():
    classifier = nn.Sequential(Normalize([0.1307], [0.3081]), small())
    call("fit", AdversarialTraining(classifier, epsilon=0.1, attack=PGD(1)), X, Y)


@pytest.mark.parametrize("function", ["fit", "validate", "test"])
@pytest.mark.parametrize(
    ("labels", "given"),
    [
        (Y - 1, "'labels from -1 to 8'"),
        (Y + 1, "'labels from 1 to 10'; give class indices in .0, 10"),
        (Y.float(), "'torch.float32'"),
        (Y[:, None], r"\(10, 1\)"),
    ],
)
def test_labels_of_plain_loaders(function, labels, given):
    with pytest.raises(SettingError, match=rf"^labels of \w+ batch 0: got {given}"):
        call(function, StandardTraining(small()), X, labels, batch_size=10)


def test_the_batch_is_named():
    x = X.clone()
    x[11] = 2.0
    with pytest.raises(SettingError, match=r"^images of test batch 2: got 'values from "):
        call("test", StandardTraining(small()), x, Y, batch_size=4)


def test_predictions_need_no_labels(tmp_path):
    module = StandardTraining(small())
    for data in (TensorDataset(X), X, TensorDataset(X, Y - 5)):
        trainer = trainer_with(Predictions(), default_root_dir=tmp_path)
        batches = trainer.predict(module, DataLoader(data, 8))
        assert torch.equal(torch.cat([part["prediction"] for part in batches]), module(X).argmax(1))
        rows = (tmp_path / "predictions.csv").read_text().splitlines()
        assert len(rows) == 17
        assert (rows[1].split(",")[1] == "") == (len(data[0]) == 1)


class Collated(torch.utils.data.Dataset):
    """Whole batches."""

    def __init__(self, *batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


@pytest.mark.parametrize("function", ["fit", "validate", "test"])
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((X[:0], Y[:0]), r"images of \w+ batch 0: got \(0, 1, 28, 28\); give at least one image"),
        ((X, Y[:3]), r"labels of \w+ batch 0: got \(3,\)"),
        ([X], r"\w+ batch 0: got 'list of 1'; give \(images, labels\)"),
        ({"image": X, "label": Y}, r"\w+ batch 0: got 'dict'; give \(images, labels\)"),
    ],
)
def test_batches_of_a_wrong_type(function, batch, message):
    trainer = trainer_with(max_epochs=1, num_sanity_val_steps=0)
    with pytest.raises(SettingError, match=f"^{message}"):
        getattr(trainer, function)(StandardTraining(small()), DataLoader(Collated(batch), batch_size=None))


def test_a_method_of_two_batches_a_step():
    module = RobustnessScoreTraining(small(), AdversarialGenerator(), warmup_epochs=0, generator_epochs=0)
    loader = DataLoader(TensorDataset(X, Y), 8)
    with pytest.raises(SettingError, match=r"^train batch 0: got 'list of 2'; the method takes 2 batches a step"):
        trainer_with(max_epochs=1).fit(module, loader)
    trainer_with(max_epochs=1).fit(module, CombinedLoader([loader, loader], "min_size"))
    both = CombinedLoader([loader, DataLoader(TensorDataset(2 * X, Y), 8)], "min_size")
    with pytest.raises(SettingError, match=r"^images of train batch 0: got 'values from"):
        trainer_with(max_epochs=1).fit(module, both)


class Raw(Digits):
    """A data module whose batches are not scaled."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return Batch(batch[0].float(), batch[1])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_images_of_data_modules(function):
    trainer = trainer_with(max_epochs=1, num_sanity_val_steps=0)
    with pytest.raises(SettingError, match=r"^images of \w+ batch 0: got 'values from 0 to 255'"):
        getattr(trainer, function)(StandardTraining(small()), datamodule=Raw())


def test_one_line_on_the_command_line(tmp_path, capsys):
    settings = [f"--config={ROOT / 'configs' / 'standard_training' / 'digits.yaml'}", f"--data={__name__}.Raw"]
    with pytest.raises(SystemExit):
        run("fit", [*settings, "--trainer.max_epochs=1"], tmp_path)
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: images of train batch 0: got 'values from 0 to 255'; expected values in [0, 1]")


# -- logits --------------------------------------------------------------------------------------------------------


def broken_network(value=math.nan):
    classifier = small()
    with torch.no_grad():
        classifier[-1].weight.fill_(value)
    return classifier


@pytest.mark.parametrize("function", ["validate", "test", "predict"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite(function, value):
    module = StandardTraining(broken_network(value))
    with pytest.raises(NonFiniteLogitsError, match=r"^\w+ batch 0, network: got logits that are NaN or infinite for"):
        call(function, module, X, Y, *([RobustnessScore()] if function == "test" else []))


def test_the_first_batch_of_such_logits_is_named():
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with torch.no_grad():
        classifier[1].weight.fill_(1e37)
    x = torch.zeros_like(X)
    x[9] = 1.0  # 784e37 is infinite in float32
    with pytest.raises(NonFiniteLogitsError, match=r"^test batch 2, .* for 1 of 4 examples"):
        call("test", StandardTraining(classifier), x, Y, batch_size=4)


def test_validation_inside_fit_is_checked():
    module = StandardTraining(broken_network())
    trainer = trainer_with(max_epochs=1, num_sanity_val_steps=1)
    with pytest.raises(NonFiniteLogitsError, match=r"^validation batch 0, "):
        trainer.fit(module, datamodule=Digits())


def test_an_autoencoder_whose_images_are_not_finite():
    module = WassersteinAutoencoder(Autoencoder(width=1, code_size=2))
    with torch.no_grad():
        for weight in module.autoencoder.decoder.parameters():
            weight.fill_(math.nan)
    with pytest.raises(NonFiniteLogitsError, match=r"^test batch 0, autoencoder: got NaN"):
        call("test", module, X, Y)


def test_one_line_for_such_logits_on_the_command_line(tmp_path, capsys):
    settings = [f"--config={ROOT / 'configs' / 'standard_training' / 'digits.yaml'}"]
    classifier = {"class_path": f"{__name__}.Broken"}
    with pytest.raises(SystemExit):
        run("test", [*settings, f"--model.classifier={json.dumps(classifier)}"], tmp_path)
    assert "error: test batch 0, network: got logits that are NaN" in capsys.readouterr().err


class Broken(nn.Module):
    """A network of NaN."""

    def __init__(self):
        super().__init__()
        self.network = broken_network()

    def forward(self, x):
        return self.network(x)


# -- precision -----------------------------------------------------------------------------------------------------

ATTACKING = {
    "AdversarialEvaluation": lambda: AdversarialEvaluation({"pgd": AttackCase(PGD(2))}),
    "CertifiedEvaluation": CertifiedEvaluation,
    "CertifiedVolume": CertifiedVolume,
    "DecisionBoundary": DecisionBoundary,
    "GradientMaskingChecks": GradientMaskingChecks,
    "WeightedMinimaxEvaluation": lambda: WeightedMinimaxEvaluation(2, 0.1),
    "RobustnessScore": RobustnessScore,
}


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("function", ["fit", "test"])
@pytest.mark.parametrize("evaluation", ATTACKING)
def test_evaluations_refuse_weights_of_half_precision(evaluation, function, precision):
    module = StandardTraining(small())
    message = rf"^trainer.precision: got '{precision}'; {evaluation} .*give 32-true or bf16-mixed"
    with pytest.raises(SettingError, match=message):
        call(function, module, X, Y, ATTACKING[evaluation](), precision=precision)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize(
    "module", [lambda: AdversarialTraining(small()), lambda: ContextualBudgets(small()), lambda: readme_method()]
)
def test_methods_refuse_weights_of_half_precision(module, precision):
    with pytest.raises(SettingError, match=rf"^trainer.precision: got '{precision}'; \w+ .*give 32-true or bf16-mixed"):
        call("fit", module(), X, Y, precision=precision)


def readme_method():
    """A user's method that does not declare ``half_precision``."""

    class Mine(StandardTraining):
        half_precision = False

    return Mine(small())


def test_weights_that_the_user_has_converted_to_half_precision():
    with pytest.raises(SettingError, match=r"^model: got 'torch.float16'; AdversarialTraining attacks"):
        call("fit", AdversarialTraining(small().half()), X, Y)


def test_standard_training_works_in_half_precision():
    module = StandardTraining(small(), optimizer=lambda params: SGD(params, lr=0.01))
    call("fit", module, X, Y, precision="bf16-true")
    (metrics,) = call("test", module, X, Y, precision="bf16-true")
    assert 0 <= metrics["test/accuracy/clean"] <= 1
    with pytest.raises(SettingError, match=r"^images of test batch 0: got 'values from"):
        call("test", module, 2 * X, Y, precision="bf16-true")


# -- passes that decide on radii -----------------------------------------------------------------------------------


class Noting(nn.Module):
    """Records the mode of each pass."""

    def __init__(self, network):
        super().__init__()
        self.network, self.modes = network, []

    def forward(self, x):
        self.modes.append(self.training)
        return self.network(x)


@pytest.mark.parametrize(("mode", "trains"), [("eval", 1), ("frozen", 10), ("keep", 10)])
def test_radii_are_chosen_in_the_mode_of_the_attack(mode, trains):
    network = nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(98, 10))
    noting = Noting(network)
    attack = PGD(2, mode=mode)
    module = InstanceAdaptiveTraining(noting, epsilon=0.1, warmup_epochs=0, attack=attack)
    trainer = trainer_with(max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(module, datamodule=Digits(batch_size=8))
    in_training = noting.modes[7:]  # the first are checks: six in evaluation mode, one in training mode
    assert len(in_training) == 3 * 2 + 2 + 1, "three attacks of two steps, two verdicts and the descent"
    assert sum(in_training) == min(trains, len(in_training))
    moved = network[1].num_batches_tracked.item()
    assert moved == (len(in_training) if mode == "keep" else 1)
