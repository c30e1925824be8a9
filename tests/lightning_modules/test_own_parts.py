"""Mistakes in a method, a network, a generator or a loss of one's own, which would train nothing or break a promise."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD

from datamodules import Digits
from lightning_modules import ContextualBudgets, RobustClassifier, StandardTraining
from lightning_modules.base.blank_runs import check_registered
from lightning_modules.base.descent import OptimizerSpec
from robust.certified_losses import SABR, CertifiedLoss
from robust.errors import SettingError
from tests.callbacks.trained import trainer_with


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def fit(module):
    """Train for two batches of eight digits."""
    trainer = trainer_with(max_epochs=1, limit_train_batches=2, limit_val_batches=0)
    trainer.fit(module, datamodule=Digits(batch_size=8))
    return trainer


def refused(module):
    """The error of a training."""
    with pytest.raises(SettingError) as caught:
        fit(module)
    return str(caught.value)


class NoStep(RobustClassifier):
    """Computes a loss and forgets to descend."""

    def training_step(self, batch, batch_idx):
        self.log("train/loss", F.cross_entropy(self(batch[0]), batch[1]).detach())


class Accumulating(RobustClassifier):
    """Steps every second batch."""

    def training_step(self, batch, batch_idx):
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        if batch_idx % 2:
            self.step(*self.all_optimizers())


class Alternating(RobustClassifier):
    """Steps one optimizer twice."""

    def training_step(self, batch, batch_idx):
        for _ in range(2):
            self.descend(F.cross_entropy(self(batch[0]), batch[1]), *self.all_optimizers())


class ByLightning(Alternating):
    """Steps as Lightning's pages say."""

    def training_step(self, batch, batch_idx):
        for _ in range(2):
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            self.optimizers().step()


class ForgotStar(RobustClassifier):
    """Gives its optimizers as a list."""

    def training_step(self, batch, batch_idx):
        self.descend(F.cross_entropy(self(batch[0]), batch[1]), self.all_optimizers())


def test_a_step_that_trains_nothing_is_warned_of():
    """Regression: the training ended with a record, and the weights had not changed."""
    with pytest.warns(UserWarning, match=r"NoStep.training_step: the first step steps no optimizer .*self.descend\("):
        fit(NoStep(network()))


def test_a_method_that_accumulates_gradients_is_not_warned_of():
    fit(Accumulating(network()))


def test_a_batch_counts_once_however_often_it_steps():
    """Regression: two steps were two batches of max_steps and of checkpoints."""
    assert fit(Alternating(network())).global_step == 2
    assert refused(ByLightning(network())).startswith(
        "ByLightning.training_step: got '2 counted steps in a batch'; max_steps and checkpoints count batches"
    )


def test_optimizers_in_a_list_are_refused():
    assert refused(ForgotStar(network())).startswith("ForgotStar.training_step: got 'list'; give the optimizers one by")


class Listed(nn.Module):
    """Layers in a plain list, all or but for the last."""

    def __init__(self, head):
        super().__init__()
        self.layers = [nn.Flatten(), nn.Linear(784, 10)]
        if head:
            self.head = nn.Linear(10, 10)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x) if hasattr(self, "head") else x


@pytest.mark.parametrize("head", [True, False])
def test_layers_in_a_plain_list_are_refused(head):
    """Regression: they kept their first weights, which no checkpoint had."""
    message = refused(StandardTraining(Listed(head)))
    assert message.startswith(
        "model.classifier: got 'Listed'; weights that are not its parameters, of shapes (10, 784)"
    )
    assert "nn.ModuleList" in message


def test_frozen_layers_in_a_plain_list_are_accepted():
    listed = Listed(head=True)
    listed.layers[1].requires_grad_(False)
    fit(StandardTraining(listed))


class Purified(nn.Module):
    """Takes a step along a gradient of its own before it classifies."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.network(leaf).square().sum(), leaf, create_graph=True)
        return self.network(x - 0.1 * gradient)


def test_a_network_that_takes_gradients_itself_has_no_other_weights():
    check_registered("model.classifier", Purified(), (1, 28, 28))


def test_a_frozen_generator_is_not_warned_of():
    module = budgets(torch.sigmoid)
    module.generator.requires_grad_(False)
    fit(module)


class Automatic(RobustClassifier):
    """Lets Lightning step its optimizer."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.automatic_optimization = True

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


class Raw(RobustClassifier):
    """Steps torch's optimizer, and zeroes its gradients afterwards."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("method", [Automatic, Raw])
def test_other_ways_to_step_are_not_warned_of(method):
    fit(method(network()))


def test_an_optimizer_without_weights_is_named():
    """Regression: torch's traceback, that it got an empty parameter list."""

    class Empty(RobustClassifier):
        def optimizer_specs(self):
            return [OptimizerSpec([], self.optimizer), *super().optimizer_specs()]

        def training_step(self, batch, batch_idx):
            pass

    with pytest.raises(SettingError, match=r"^model: got 'Empty'; an optimizer would have no weights"):
        Empty(network()).configure_optimizers()


class Own(nn.Module):
    """A generator of budgets: a convolution, and a function of its outputs."""

    def __init__(self, function):
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        self.function = function

    def forward(self, x):
        return self.function(self.convolution(x))


def budgets(function):
    return ContextualBudgets(
        network(), Own(function), epsilon=0.1, optimizer=lambda params: SGD(params, 0.01), verifier="auto"
    )


@pytest.mark.parametrize("function", [lambda x: x + 3, lambda x: x * 100, lambda x: x * torch.nan])
def test_outputs_of_a_generator_out_of_range_are_refused(function):
    """Regression: budgets had another volume than that of the certificate's name."""
    assert re.match(r"generator: got 'outputs from .*'; (give a network whose|its weights)", refused(budgets(function)))


def test_a_generator_with_dropout_in_evaluations_is_refused():
    message = refused(budgets(lambda x: F.dropout(torch.sigmoid(x), 0.5, training=True).clamp(0.01, 0.99)))
    assert message == ("model.generator: got 'Own, whose passes differ in evaluation mode'; switch its noise off there")


def test_a_generator_of_batch_statistics_is_refused():
    message = refused(budgets(lambda x: torch.sigmoid(100 * (x - x.mean(0, keepdim=True)))))
    assert message.startswith("model.generator: got 'Own, whose outputs depend on the other images of a batch")


def test_a_generator_that_gets_no_gradient_is_warned_of():
    message = r"no gradient reaches generator.convolution.weight and 1 other weights of its optimizer"
    with pytest.warns(UserWarning, match=message):
        fit(budgets(lambda x: torch.sigmoid(x.detach())))


class Total(SABR):
    """A sum over the batch."""

    def __call__(self, network, verifier, budgets, x, y, crown_weight):
        return super().__call__(network, verifier, budgets, x, y, crown_weight).sum()


class Short(CertifiedLoss):
    """Without the weight of the linear bound."""

    def __call__(self, network, verifier, budgets, x, y):
        return F.cross_entropy(network(x), y, reduction="none")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Total(), "model.robust_loss: got 'Total'; its output for 2 images is (); give one loss for each example"),
        (
            Short(),
            "model.robust_loss: got 'Short'; it is called as loss(network, verifier, budgets, x, y, crown_weight",
        ),
    ],
)
def test_losses_of_another_form_are_refused_before_the_training(loss, message):
    module = ContextualBudgets(network(), None, epsilon=0.1, robust_loss=loss)
    assert refused(module).startswith(message)
