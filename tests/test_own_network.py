"""Networks of the user's own: from torchvision and timm, their weights, and the verifier that suits them."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import train
from robust.bounds import FeedForwardVerifier, LirpaVerifier, choose_verifier
from robust.checkpoints import load_weights
from robust.errors import SettingError
from robust.threat_models import LinfBall
from tests.lirpa_cases import needs_lirpa
from tests.testers import QUIET, ROOT, error_of, last_checkpoint, results_in

SMALL = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", *QUIET]
SMALL += ["--data=Digits", "--data.batch_size=4", "--data.eval_batch_size=4"]
STANDARD = ["--model=StandardTraining"]
CERTIFY = ["--trainer.callbacks=[CertifiedEvaluation]", "--test_after_fit=true", "--trainer.limit_test_batches=1"]


class Plain(nn.Sequential):
    """A classifier that the own verifier can bound."""

    def __init__(self, width: int = 4) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


class Quotient(nn.Module):
    """A classifier that only auto_LiRPA can bound."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(784, 8), nn.Linear(8, 10)

    def forward(self, x):
        h = self.first(torch.flatten(x, 1)).relu()
        return self.last(h / (1 + h))


class Sorted(nn.Sequential):
    """A classifier that no verifier can bound."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 8), Sorting(), nn.Linear(8, 10))


class Sorting(nn.Module):
    """Sorts the features."""

    def forward(self, x):
        return x.sort(1).values


def fit(folder, *settings):
    train.main(["fit", *settings, *SMALL, f"--trainer.default_root_dir={folder}"])
    return results_in(folder / "results.json")


# -- classes of other packages --------------------------------------------------------------------------------------


def timm_settings(**arguments):
    network = {"class_path": "timm.create_model", "init_args": {"model_name": "test_resnet", **arguments}}
    return [*STANDARD, f"--model.classifier={json.dumps(network)}"]


def test_a_network_of_timm_takes_any_setting_of_its_own(tmp_path, capsys):
    pytest.importorskip("timm")
    stored = fit(tmp_path / "one", *timm_settings(in_chans=1, num_classes=10))["config"]["model"]["init_args"]
    assert stored["classifier"]["dict_kwargs"] == {"in_chans": 1, "num_classes": 10}
    later = [
        "--model.classifier.num_classes=10",
        "--model.classifier.pretrained=false",
        "--model.classifier.in_chans=1",
    ]
    fit(tmp_path / "two", *timm_settings(in_chans=3), *later)
    wrong = error_of(["fit", *timm_settings(in_chns=1, num_classes=10), *SMALL], capsys)
    assert "model.classifier: got 'timm.models._factory.create_model'; building it fails at " in wrong
    assert "unexpected keyword argument 'in_chns'; correct it, or give other settings" in wrong


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["--model.classifier.num_classes=10"], "the data's images are (1, 28, 28); Given groups=1, weight of size"),
        (["--model.classifier.num_clases=10"], "got an unexpected keyword argument 'num_clases'; correct it, or give"),
    ],
    ids=["channels", "typo"],
)
def test_a_network_of_torchvision_that_does_not_fit_is_named(settings, expected, tmp_path, capsys):
    network = ["--model.classifier=torchvision.models.resnet18", *settings]
    line = error_of(["fit", *STANDARD, *network, *SMALL, f"--trainer.default_root_dir={tmp_path}"], capsys)
    assert line.startswith("model.classifier")
    assert expected in line


# -- weights --------------------------------------------------------------------------------------------------------


def test_weights_of_any_file_are_loaded(tmp_path):
    torch.manual_seed(1)
    network = Plain()
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    torch.save(network.state_dict(), tmp_path / "net.pth")
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, tmp_path / "nested.pth")
    fit(tmp_path / "run", *STANDARD, f"--model.classifier={__name__}.Plain", "--model.optimizer.lr=0")
    for name in ("net.safetensors", "net.pth", "nested.pth"):
        settings = [f"--model.classifier={__name__}.Plain", f"--model.weights={tmp_path / name}"]
        fit(tmp_path / f"run-{name}", *STANDARD, *settings, "--model.optimizer.lr=0")
        saved = torch.load(last_checkpoint(tmp_path / f"run-{name}"), weights_only=True)["state_dict"]
        for key, weight in network.state_dict().items():
            assert torch.equal(saved[f"classifier.{key}"], weight)
    other = Plain()
    load_weights(other, str(last_checkpoint(tmp_path / "run-net.pth")), "weights")  # the classifier of a training
    assert torch.equal(other[1].weight, network[1].weight)


class Lazy(nn.Sequential):
    """A classifier that learns its number of features from the first images."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.LazyLinear(10))


def test_lazy_layers_take_the_weights_of_a_training(tmp_path):
    """Regression: an export and another training ended in a traceback."""
    network = [*STANDARD, f"--model.classifier={__name__}.Lazy"]
    fit(tmp_path / "first", *network)
    checkpoint = last_checkpoint(tmp_path / "first")
    fit(tmp_path / "second", *network, f"--model.weights={checkpoint}", "--model.optimizer.lr=0")
    train.main(["export", f"--ckpt_path={checkpoint}", "--data=Digits", "--to=safetensors", *QUIET])
    saved, again = (
        torch.load(path, weights_only=True)["state_dict"]["classifier.1.weight"]
        for path in (checkpoint, last_checkpoint(tmp_path / "second"))
    )
    exported = load_file(tmp_path / "first" / "export" / "last.safetensors")
    assert torch.equal(saved, again)
    assert any(torch.equal(saved, weight) for weight in exported.values())


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors", "zoo:digits_adversarial_training", None])
def test_an_evaluation_without_weights_warns(name, tmp_path):
    network = "DMSmall" if name and name.startswith("zoo:") else f"{__name__}.Plain"
    save_file(Plain().state_dict(), tmp_path / "net.safetensors")
    torch.save(Plain().state_dict(), tmp_path / "net.pth")
    settings = [*STANDARD, f"--model.classifier={network}", "--data=Digits", *QUIET, "--trainer.limit_test_batches=1"]
    if name is not None:
        settings.append(f"--model.weights={name if name.startswith('zoo:') else tmp_path / name}")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        train.main(["test", *settings, f"--trainer.default_root_dir={tmp_path / 'run'}"])
    untrained = [str(each.message) for each in shown if "untrained weights" in str(each.message)]
    message = "ckpt_path: got None; test runs on untrained weights; give a checkpoint"
    assert untrained == ([] if name else [message])


def test_an_evaluation_with_weights_of_the_classifier_alone_warns_of_the_generator(tmp_path):
    settings = [f"--config={ROOT / 'configs' / 'quickstart.yaml'}", "--trainer.callbacks=[]", *QUIET]
    settings += ["--model.classifier=DMSmall", "--model.weights=zoo:digits_uniform_budgets"]
    with pytest.warns(UserWarning, match=r"ckpt_path: got None; test runs on an untrained model.generator; give a"):
        train.main(["test", *settings, "--trainer.limit_test_batches=1", f"--trainer.default_root_dir={tmp_path}"])


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"3.bias": None}, "missing: 3.bias; give weights of this network, or the network's settings of that file"),
        ({"module.x": torch.zeros(1)}, "unexpected: module.x; give weights of this network"),
        ({"1.bias": torch.zeros(7)}, "wrong shape: 1.bias (7,) instead of (4,); give weights of this network"),
        ({f"{i}.w": torch.zeros(1) for i in range(5)}, "unexpected: 0.w, 1.w, 2.w and 2 more; give weights"),
    ],
    ids=["missing", "unexpected", "shape", "many"],
)
def test_weights_that_do_not_fit_are_named(state, expected, tmp_path):
    state = {name: weight for name, weight in (Plain().state_dict() | state).items() if weight is not None}
    path = str(tmp_path / "net.safetensors")
    save_file(state, path)
    with pytest.raises(SettingError) as error:
        load_weights(Plain(), path, "weights")
    assert str(error.value).startswith(f"weights: got '{path}'; {expected}")


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_weights_of_a_wrapped_network_are_loaded(wrapper, tmp_path):
    weights = {name: torch.full_like(weight, 0.5) for name, weight in Plain().state_dict().items()}
    torch.save({f"{wrapper}{name}": weight for name, weight in weights.items()}, tmp_path / "wrapped.pth")
    network = Plain()
    load_weights(network, str(tmp_path / "wrapped.pth"), "weights")
    assert all(torch.equal(weight, weights[name]) for name, weight in network.state_dict().items())


def test_a_file_without_weights_is_refused(tmp_path, payload, capsys):
    torch.save({"state_dict": Plain().state_dict(), "x": payload}, tmp_path / "evil.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"abc")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(Plain().state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name, expected in {
        "none.pth": "no such file; give a .safetensors file, or a .pth file of a state_dict",
        "none.safetensors": "no such file; give a .safetensors file, or a .pth file of a state_dict",
        "evil.pth": "it holds more than tensors and plain values, which is not read as it could run code",
        "cut.safetensors": "it cannot be read (",
        "list.pth": "it holds no state_dict of tensors; give a .safetensors file",
        "old.pth": "it is in torch's old format, which has no checksums; load it with torch.load and save it again",
    }.items():
        path = str(tmp_path / name)
        settings = [*STANDARD, f"--model.classifier={__name__}.Plain", f"--model.weights={path}"]
        assert error_of(["fit", *settings, *SMALL], capsys).startswith(f"model.weights: got '{path}'; {expected}")


# -- verifier -------------------------------------------------------------------------------------------------------


def test_the_verifier_suits_the_network():
    plain, quotient = (choose_verifier(network, (1, 28, 28)) for network in (Plain(), Quotient()))
    assert isinstance(plain.verifier, FeedForwardVerifier)
    assert isinstance(quotient.verifier, LirpaVerifier)
    assert quotient.reason.startswith(
        "FeedForwardVerifier has no bound for network: got 'div (test_own_network.py, line "
    )
    assert quotient.reason.endswith("it divides by activations; multiply with their reciprocal")


@needs_lirpa
@pytest.mark.parametrize(("network", "chosen"), [("Plain", "FeedForwardVerifier"), ("Quotient", "LirpaVerifier")])
@pytest.mark.parametrize("method", ["StandardTraining", "ContextualBudgets"])
def test_training_and_certificates_use_it_and_the_log_says_so_once(network, chosen, method, tmp_path, caplog):
    network = f"--model.classifier={__name__}.{network}"
    with caplog.at_level("INFO", "pytorch_lightning.utilities.rank_zero"):
        record = fit(tmp_path, f"--model={method}", network, "--model.epsilon=0.01", *CERTIFY)
    assert [text.split(",")[0] for text in caplog.messages if "Verifier: " in text] == [f"Verifier: {chosen}"]
    assert record["metrics"]["test/certified_accuracy/linf_0.01"] <= record["metrics"]["test/accuracy/clean"] <= 1


@needs_lirpa
def test_a_network_that_none_can_bound_is_named_before_training_and_is_trained_and_attacked(tmp_path, capsys):
    network = [f"--model.classifier={__name__}.Sorted", f"--trainer.default_root_dir={tmp_path}"]
    layer = "network layer '2' (Sorting): got 'onnx::TopK'; auto_LiRPA cannot trace it; replace that layer"
    for settings in ([*STANDARD, *CERTIFY], ["--model=ContextualBudgets"]):
        line = error_of(["fit", *settings, *network, *SMALL], capsys)
        assert line.endswith(layer), line
        assert not list(tmp_path.rglob("*.ckpt"))
    adversarial = ["--model=AdversarialTraining", "--model.attack=robust.attacks.PGD", "--model.attack.steps=1"]
    record = fit(tmp_path, *adversarial, network[0])
    assert 0 <= record["metrics"]["val/accuracy/clean"] <= 1


@needs_lirpa
def test_pooling_of_windows_that_overlap_is_bounded_by_intervals_where_auto_lirpa_bounds_it():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(3, 2, 1), nn.Flatten(), Root(), nn.Linear(18, 3)).eval()
    choice = choose_verifier(network, (1, 8, 8))
    assert str(choice).endswith("; by method ibp, since auto_LiRPA has no linear bounds for network layer '1'")
    x = torch.rand(2, 1, 8, 8)
    margins = choice.verifier.margins(network, LinfBall(0.01).interval(x), torch.tensor([0, 1]))
    assert margins.shape == (2, 2)


class Root(nn.Module):
    """A square root, of which only auto_LiRPA has a bound."""

    def forward(self, x):
        return (x.relu() + 1).sqrt()


class Attentive(nn.Module):
    """A vision transformer of one layer, which neither verifier bounds."""

    def __init__(self):
        super().__init__()
        self.patch, self.attention = nn.Conv2d(1, 8, 7, 7), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        h = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(h, h, h)[0].mean(1))


class Sized(nn.Sequential):
    """A network that checks its images itself."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 10))

    def forward(self, x):
        assert x.shape[-1] == 32, "images must have 32 pixels"
        return super().forward(x)


@needs_lirpa
def test_what_neither_verifier_bounds_is_named_with_its_line(tmp_path, capsys):
    settings = [f"--model.classifier={__name__}.Attentive", f"--trainer.default_root_dir={tmp_path}"]
    line = error_of(["fit", "--model=ContextualBudgets", *settings, *SMALL], capsys)
    assert (
        "verifier: got 'auto'; Attentive: FeedForwardVerifier has no bound for network layer 'attention': got '" in line
    )
    assert "(test_own_network.py, line " in line
    assert "; nor has auto_LiRPA: " in line


def test_what_the_network_says_of_the_images_is_the_error(tmp_path, capsys):
    settings = [f"--model.classifier={__name__}.Sized", f"--trainer.default_root_dir={tmp_path}"]
    line = error_of(["fit", *STANDARD, *settings, *SMALL], capsys)
    assert line == "model.classifier: got 'Sized'; the data's images are (1, 28, 28); images must have 32 pixels"
