"""Optimizer settings of a method that builds its own optimizers, and the state of an attack on a method."""

import json

import pytest
import torch
from torch import nn

import train
from lightning_modules import StandardTraining
from robust.attacks import AutoAttack
from robust.checkpoints import load_weights
from robust.errors import SettingError
from robust.fingerprint import structure
from robust.networks import Normalized
from robust.threat_models import LinfBall
from tests.short_autoattack import shortened
from tests.testers import QUIET, error_of

SETTINGS = [
    "--data=Digits",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
]


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


class Own(StandardTraining):
    """Builds its optimizer."""

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Extended(StandardTraining):
    """Takes the optimizer of the settings."""

    def configure_optimizers(self):
        return super().configure_optimizers()


class Helped(StandardTraining):
    """Takes the optimizer of the settings in another function."""

    def configure_optimizers(self):
        return self.build()

    def build(self):
        return self.optimizer(self.parameters())


class Renamed(Own):
    """Has an optimizer argument of its own."""

    def __init__(self, *args, optimizer=torch.optim.Adam, **settings):
        super().__init__(*args, **settings)
        self.made = optimizer


class Blurred(StandardTraining):
    """Negates the logits of its network."""

    def forward(self, x):
        return -super().forward(x)


@pytest.mark.parametrize("setting", ["optimizer.lr=0.01", "lr_scheduler=torch.optim.lr_scheduler.ConstantLR"])
def test_settings_that_the_method_does_not_read_are_refused(setting, capsys, tmp_path):
    """Regression: they had no effect, and the record had them."""
    model = [f"--model={__name__}.Own", "--model.classifier=robust.networks.SmallCNN", f"--model.{setting}"]
    line = error_of(["fit", *model, *SETTINGS, f"--trainer.default_root_dir={tmp_path}"], capsys)
    name = setting.split("=")[0].split(".")[0]
    assert line.startswith(f"model.{name}: got ")
    assert "configure_optimizers of Own does not read it" in line


@pytest.mark.parametrize("kind", ["Own", "Extended", "Helped", "Renamed"])
def test_the_record_has_the_settings_that_are_read(kind, tmp_path):
    model = [f"--model={__name__}.{kind}", "--model.classifier=robust.networks.SmallCNN"]
    train.main(["fit", *model, *SETTINGS, *QUIET, f"--trainer.default_root_dir={tmp_path}"])
    (path,) = tmp_path.rglob("results.json")
    record = json.loads(path.read_text())["fit"]
    assert ("optimizer" in record["config"]["model"]["init_args"]) == (kind != "Own")
    assert ("Adam" in str(record["optimizers"])) == (kind in ("Own", "Renamed"))


def test_settings_of_an_earlier_runs_file_are_dropped_with_a_warning(tmp_path):
    model = [f"--model={__name__}.Own", "--model.classifier=robust.networks.SmallCNN"]
    (tmp_path / "old.yaml").write_text(
        "model: {init_args: {optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}}}"
    )
    given = [*model, f"--config={tmp_path / 'old.yaml'}", *SETTINGS, *QUIET]
    with pytest.warns(UserWarning, match="model.optimizer: configure_optimizers of Own does not read it"):
        train.main(["fit", *given, f"--trainer.default_root_dir={tmp_path}"])
    (last,) = tmp_path.rglob("last.ckpt")
    train.main(["test", *given, f"--ckpt_path={last}", f"--trainer.default_root_dir={tmp_path / 'test'}"])


def test_models_that_differ_outside_of_their_networks_have_states_of_their_own():
    """Regression: a method that overrides forward had the state of its network's."""
    one, hooked, shifted = (StandardTraining(network()) for _ in range(3))
    other = Blurred(network())
    hooked.register_forward_hook(lambda *_: None)
    shifted._shift = 0.5
    structures = [str(structure(each)) for each in (one, other, hooked, shifted)]
    assert len(set(structures)) == 4
    assert structures[0] == str(structure(StandardTraining(network())))


def test_the_state_of_an_attack_does_not_depend_on_the_run_of_a_method(tmp_path, monkeypatch):
    """Regression: it depended on the log folder, so that no test on the command line continued."""
    library = pytest.importorskip("pyautoattack")
    monkeypatch.setattr(library, "AutoAttack", shortened(library))
    first, x = network(), torch.rand(4, 1, 28, 28)
    weights, y = first.state_dict(), first(x).argmax(1)
    for folder in ("a", "b"):
        module = StandardTraining(network())
        module.classifier.load_state_dict(weights)
        module.optimizer = lambda params, folder=folder: torch.optim.SGD(params, lr=len(folder))
        module._metric_attributes = {id(module): folder}
        AutoAttack(state_folder=tmp_path)(module.eval(), LinfBall(0.1), x, y)
    assert len(list(tmp_path.glob("*.pt"))) == 1


def test_weights_of_a_network_load_behind_its_normalisation(tmp_path):
    """Regression: their names had to be changed by hand."""
    bare, normalized = network(), Normalized(network(), [0.5], [0.25])
    torch.save(bare.state_dict(), tmp_path / "bare.pth")
    load_weights(normalized, str(tmp_path / "bare.pth"), "model.weights")
    assert torch.equal(normalized[1][1].weight, bare[1].weight)
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(SettingError, match=r"^model\.weights: got .*missing: "):
        load_weights(normalized, str(tmp_path / "other.pth"), "model.weights")
