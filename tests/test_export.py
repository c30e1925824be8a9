"""Exported files are read back by other code than ours: onnxruntime, safetensors, a parser of VNN-LIB."""

import csv
import re
import shutil
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import train
from datamodules import Digits
from lightning_modules import ContextualBudgets
from robust import zoo
from robust.checkpoints import load_weights
from robust.errors import SettingError
from robust.export import write_instances, write_onnx, write_property, write_safetensors
from robust.networks import (
    BayesianWeights,
    ConvolutionalBudgetGenerator,
    DMSmall,
    Noisy,
    NoisyWeights,
    Normalize,
    without_noise,
)
from robust.threat_models import Box, LinfBall
from tests.command_line import CONFIGS, FEW_BATCHES, TINY
from tests.small_run import SMALL
from tests.testers import error_of, last_checkpoint, run
from tests.vnnlib import VNNLIB

SHAPE = (1, 28, 28)


def onnx_logits(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short training with learned budgets."""
    folder = tmp_path_factory.mktemp("trained")
    few = [*FEW_BATCHES, "--trainer.max_epochs=1", "--trainer.logger=false"]
    train.main(["fit", *TINY, *few, f"--trainer.default_root_dir={folder}"])
    return folder


@pytest.fixture(scope="module")
def module(trained):
    """The trained module."""
    module = ContextualBudgets(
        DMSmall(SHAPE, 10), ConvolutionalBudgetGenerator(), epsilon=0.01, alpha_low=0.0625, alpha_high=1.5
    )
    module.load_state_dict(torch.load(last_checkpoint(trained), weights_only=True)["state_dict"])
    return module.eval()


def export(folder, *settings):
    train.main(["export", *TINY, "--trainer.logger=false", f"--ckpt_path={last_checkpoint(folder)}", *settings])


def test_onnx_gives_the_logits_of_the_checkpoint_for_any_batch(trained, module):
    train.main(["export", f"--ckpt_path={last_checkpoint(trained)}", "--data=Digits", "--to=onnx"])  # without a config
    path = trained / "export" / "last.onnx"
    onnx.checker.check_model(onnx.load(path), full_check=True)
    for batch in (1, 5):
        images = torch.rand(batch, *SHAPE)
        torch.testing.assert_close(onnx_logits(path, images), module(images), rtol=0, atol=1e-5)


def test_safetensors_hold_the_weights_and_the_card_says_how_they_were_trained(trained, module, tmp_path):
    export(trained, "--to=safetensors", "--license=mit", f"--folder={tmp_path}", "--model.epsilon=0.3")
    weights = load_file(tmp_path / "last.safetensors")
    network = DMSmall(SHAPE, 10)
    network.load_state_dict(weights)
    images = torch.rand(3, *SHAPE)
    assert torch.equal(network.eval()(images), module(images))
    with safe_open(tmp_path / "last.safetensors", "pt") as file:
        assert file.metadata()["method"] == "ContextualBudgets"
        assert file.metadata()["license"] == "mit"
    card = (tmp_path / "last.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "mit"
    assert header["datasets"] == ["Digits"]
    settings = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert settings["model"]["init_args"]["epsilon"] == 0.01  # the training's, not this command's
    assert "`fit`, weights: those at the end of training." in card
    assert re.search(r"\| val/accuracy/clean \| [01]", card)


def test_weights_of_float64_are_said_to_be_rounded(trained, tmp_path):
    checkpoint = torch.load(last_checkpoint(trained), weights_only=True)
    checkpoint["state_dict"] = {name: value.double() for name, value in checkpoint["state_dict"].items()}
    torch.save(checkpoint, tmp_path / "double.ckpt")
    with pytest.warns(UserWarning, match="ckpt_path: its weights are float64; those of the export are rounded"):
        train.main(["export", *TINY, f"--ckpt_path={tmp_path / 'double.ckpt'}", "--to=safetensors"])


def test_a_card_without_results_and_licence_says_so(trained, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(last_checkpoint(trained), last_checkpoint(tmp_path))
    export(tmp_path, "--to=safetensors")
    card = (tmp_path / "export" / "last.md").read_text()
    assert "None: there is no `results.json` beside the checkpoint." in card
    assert "**Licence**: not stated" in card


def test_a_card_without_records_has_only_what_the_checkpoint_says(trained, tmp_path):
    """Regression: data, seed and schedule of the export command were said to be those of the training."""
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(last_checkpoint(trained), last_checkpoint(tmp_path))
    export(tmp_path, "--to=safetensors", "--seed_everything=7", "--data.batch_size=64", "--model.epsilon=0.3")
    card = (tmp_path / "export" / "last.md").read_text()
    assert "trained; on which data, and by which schedule, is not recorded." in card
    assert "datasets" not in card
    settings = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert settings.keys() == {"seed_everything", "model"}
    assert settings["seed_everything"] == torch.load(last_checkpoint(trained), weights_only=True)["seed"]
    assert settings["model"]["init_args"]["epsilon"] == 0.01


def test_a_network_of_the_zoo_keeps_its_card(tmp_path, capsys):
    """Regression: its licence and its results were said not to be known, and its data to be those of the command."""
    name = "digits_standard_training"
    start = ["export", f"--ckpt_path=zoo:{name}", "--data=Digits", "--to=safetensors", f"--folder={tmp_path}"]
    train.main([*start, "--seed_everything=7"])
    assert (tmp_path / f"{name}.md").read_text() == zoo.card(name)
    images = torch.rand(3, *SHAPE)
    network = zoo.load(name)
    network.load_state_dict(load_file(tmp_path / f"{name}.safetensors"))
    torch.testing.assert_close(network(images), zoo.load(name)(images), rtol=0, atol=0)
    assert error_of([*start, "--license=gpl-3.0"], capsys).startswith("license: got 'gpl-3.0'; the zoo's networks have")


def test_properties_are_the_learned_budgets_of_the_chosen_images(trained, module):
    export(trained, "--to=vnnlib", "--indices=[3, 7]", "--timeout=60")
    folder = trained / "export" / "last-vnnlib"
    rows = list(csv.reader((folder / "instances.csv").open()))
    assert rows == [["network.onnx", f"image_{index}_own_budgets.vnnlib", "60"] for index in (3, 7)]
    x, y = Digits().images("test")[torch.tensor([3, 7])]
    with torch.no_grad():
        lower, upper = module.threat_models(x, 0.01)["own_budgets"].interval(x)
    assert (upper - lower).unique().numel() > 100  # per pixel
    for row, (network, name, _) in enumerate(rows):
        prop = VNNLIB(folder / name)
        assert prop.variables == [f"X_{i}" for i in range(784)] + [f"Y_{k}" for k in range(10)]
        assert np.array_equal(prop.lower, lower[row].flatten().numpy())
        assert np.array_equal(prop.upper, upper[row].flatten().numpy())
        logits = onnx_logits(folder / network, x[row : row + 1])[0]
        assert prop.violated(logits.numpy()) == bool(logits.argmax() != y[row])
        assert prop.violated(nn.functional.one_hot(y[row], 10).numpy()) is False
        assert prop.violated(nn.functional.one_hot((y[row] + 1) % 10, 10).numpy())
        assert prop.violated(np.zeros(10))  # ties count as counterexamples


@pytest.mark.thorough
def test_properties_of_a_radius_are_linf_balls(trained):
    export(trained, "--to=vnnlib", "--indices=[0]", "--epsilon=0.1")
    prop = VNNLIB(trained / "export" / "last-vnnlib" / "image_0_linf_0.1.vnnlib")
    x, _ = Digits().images("test")[torch.tensor([0])]
    lower, upper = LinfBall(0.1).interval(x)
    assert np.array_equal(prop.lower, lower.flatten().numpy())
    assert np.array_equal(prop.upper, upper.flatten().numpy())


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--to=vnnlib", "--indices=[]"], "indices: got []; give at least one test image"),
        (["--to=vnnlib", "--indices=[1,1]"], "indices: got [1, 1]; give each image once"),
        (["--to=vnnlib", "--indices=[299]"], "indices: got 299; the test has 299 images; give 0 to 298"),
        (["--to=vnnlib", "--epsilon=0"], "epsilon: got 0.0; give a radius in (0, 1], in pixel units"),
        (["--to=vnnlib", "--timeout=0"], "timeout: got 0; give at least 1 second"),
        (["--to=onnx", "--folder=/proc/none"], "folder: got '/proc/none'; it cannot be written"),
        (["--to=pickle"], "to: got 'pickle'; give one of ['onnx', 'safetensors', 'vnnlib']"),
        (["--to=onnx", "--ckpt_path=null"], "ckpt_path: got None; give a checkpoint that fit wrote"),
    ],
)
def test_wrong_settings_are_named(settings, message, trained, capsys):
    arguments = ["export", *TINY, f"--ckpt_path={last_checkpoint(trained)}", *settings]
    assert error_of(arguments, capsys).startswith(message)


def test_a_module_without_boxes_needs_a_radius_and_an_autoencoder_is_no_classifier(tmp_path, capsys):
    one = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    run("fit", [*SMALL, *one], tmp_path)
    checkpoint = f"--ckpt_path={last_checkpoint(tmp_path)}"
    error = error_of(["export", *SMALL, checkpoint, "--to=vnnlib", "--model.norm=l2"], capsys)
    expected = "epsilon: got None; VNN-LIB describes boxes, but the module's threat models are l2_0.1; give the radius"
    assert error.startswith(expected)
    autoencoder = f"--config={CONFIGS / 'wasserstein_autoencoder' / 'digits.yaml'}"
    error = error_of(["export", autoencoder, checkpoint, "--to=onnx"], capsys)
    assert error == "model: got 'WassersteinAutoencoder'; it is not a classifier; give one"


@pytest.mark.slow
def test_the_command_says_that_a_network_with_noise_is_exported_without_it(tmp_path, capsys, caplog):
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
    few += ["--model.noise_delay=0", "--trainer.callbacks=[]", "--test_after_fit=false", "--checkpoint.monitor=null"]
    settings = [f"--config={CONFIGS / 'learn2perturb' / 'digits.yaml'}", *few]
    run("fit", settings, tmp_path)
    for to in ("onnx", "safetensors"):
        train.main(["export", *settings, f"--ckpt_path={last_checkpoint(tmp_path)}", f"--to={to}"])
    assert "This is the mean network: the trained noise is off" in caplog.text + capsys.readouterr().err
    assert "the weights include its scales" in (tmp_path / "export" / "last.md").read_text()


def test_a_damaged_record_is_named(trained, tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(last_checkpoint(trained), last_checkpoint(tmp_path))
    (tmp_path / "results.json").write_text("{")
    arguments = ["export", *TINY, f"--ckpt_path={last_checkpoint(tmp_path)}", "--to=safetensors"]
    assert error_of(arguments, capsys).startswith(
        f"results.json: got '{tmp_path / 'results.json'}'; it is not valid JSON"
    )


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_remedy(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingError, match=f"export: got 'no package {name}'; install it: uv sync --extra export"):
        write_onnx(nn.Flatten(), SHAPE, tmp_path / "network.onnx")


def test_safetensors_missing_is_named_with_the_setting_of_the_weights(tmp_path, monkeypatch):
    (tmp_path / "weights.safetensors").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(SettingError, match=r"model\.weights: got 'no package safetensors'; install it"):
        load_weights(nn.Linear(1, 1), str(tmp_path / "weights.safetensors"), "model.weights")


def test_safetensors_missing_is_named_and_an_unwritable_path_too(tmp_path, monkeypatch):
    with pytest.raises(SettingError, match=r"path: got .*; it cannot be written"):
        write_safetensors(nn.Linear(1, 1), tmp_path / "no" / "file.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(SettingError, match="no package safetensors'; install it"):
        write_safetensors(nn.Linear(1, 1), tmp_path / "file.safetensors")


def small():
    return nn.Sequential(
        Normalize([0.5], [0.2]), nn.Conv2d(1, 3, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4)
    )


@pytest.mark.thorough_but("<lambda>0")
@pytest.mark.parametrize(
    "noisy", [lambda: Noisy(small(), ["1"], (1, 8, 8)), lambda: NoisyWeights(small()), lambda: BayesianWeights(small())]
)
def test_a_network_with_noise_is_exported_as_its_mean_network(noisy, tmp_path):
    network = noisy()
    write_onnx(network, (1, 8, 8), tmp_path / "network.onnx")
    images = torch.rand(3, 1, 8, 8)
    assert network.training
    network.eval()
    with torch.no_grad():
        assert not torch.equal(network(images), network(images))
        with without_noise(network):
            mean = network(images)
    torch.testing.assert_close(onnx_logits(tmp_path / "network.onnx", images), mean, rtol=0, atol=1e-5)


class Random(nn.Module):
    """Draws random numbers that the framework does not know of."""

    def forward(self, x):
        return x.flatten(1) + torch.randn(1)


class Branching(nn.Module):
    """Depends on values, which torch.export refuses."""

    def forward(self, x):
        return x.flatten(1) if float(x.sum()) > 0 else -x.flatten(1)


class Rounded(nn.Module):
    """Returns logits of another type than float32."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return x.flatten(1).to(self.kind)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_logits_of_a_file_are_float32(kind, tmp_path):
    """Regression: those of bfloat16 ended in a traceback of numpy's, and the file had logits of another type."""
    with pytest.raises(SettingError, match=f"network: got 'Rounded with logits of {kind}'; the file's logits are"):
        write_onnx(Rounded(kind), SHAPE, tmp_path / "network.onnx")


def test_networks_that_cannot_be_exported_are_named(tmp_path):
    with pytest.raises(SettingError, match="network: got 'Random, whose passes differ'; a file has no random draws"):
        write_onnx(Random(), SHAPE, tmp_path / "network.onnx")
    with pytest.raises(SettingError, match=r"network: got 'Branching'; torch\.onnx cannot export it: "):
        write_onnx(Branching(), SHAPE, tmp_path / "network.onnx")


def test_wrong_properties_are_refused(tmp_path):
    x = torch.full((1, 1, 2, 2), 0.5)
    path = tmp_path / "property.vnnlib"
    for box, label, message in (
        (Box(x, x), 3, r"label: got 3; give a class in \[0, 3\)"),
        (Box(x + 0.1, x), 0, "box: got 'lower above upper'"),
        (Box(x.expand(2, -1, -1, -1), x), 0, "box: got .*; give a box of one image"),
        (Box(x - 1, x), 0, "lower: got 'values from -0.5 to -0.5'"),
    ):
        with pytest.raises(SettingError, match=message):
            write_property(path, box, label, num_classes=3)
    assert not path.exists()


def test_bounds_are_decimals_without_exponent(tmp_path):
    x = torch.tensor([1e-7, 1 / 3, 1 - 2**-24, 0.0]).view(1, 1, 2, 2)
    write_property(tmp_path / "property.vnnlib", Box(x, x), 0, 2, comment="two\nlines")
    text = (tmp_path / "property.vnnlib").read_text()
    assert text.startswith("; two\n; lines\n")
    assert re.findall(r"X_0 ([\d.]+)\)", text) == ["0.0000001"] * 2
    assert np.array_equal(VNNLIB(tmp_path / "property.vnnlib").lower, x.flatten().numpy())
    write_instances(tmp_path / "instances.csv", [])
    assert (tmp_path / "instances.csv").read_text() == ""


def test_a_written_box_contains_one_of_float64(tmp_path):
    """Regression: its ends were rounded to the nearest float32."""
    ends = torch.rand(2, 1, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).sort(0).values
    write_property(tmp_path / "property.vnnlib", Box(ends[0], ends[1]), 0, 2)
    read = VNNLIB(tmp_path / "property.vnnlib")
    lower, upper = (torch.from_numpy(np.asarray(end, np.float32)).double() for end in (read.lower, read.upper))
    assert (lower <= ends[0].flatten()).all()
    assert (upper >= ends[1].flatten()).all()
    assert (ends[0].flatten() - lower).max() < 1e-7
