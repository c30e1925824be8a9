"""Networks of the robustness framework."""

import copy

import pytest
import torch

from robust.errors import SettingError
from robust.networks import AdversarialGenerator, Autoencoder, PlainCNN, load_autoencoder, trained_autoencoder
from robust.scores import OnManifold


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts():
    with torch.device("meta"):
        assert parameters(PlainCNN()) == 584_170
        assert parameters(PlainCNN((3, 32, 32))) == 814_122
        assert parameters(AdversarialGenerator(1)) == 918_913
        assert parameters(AdversarialGenerator(3)) == 920_067
        assert parameters(Autoencoder().encoder) == 11_026_056
        assert parameters(Autoencoder().decoder) == 10_943_745


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_shapes(shape):
    x = torch.rand(2, *shape)
    assert PlainCNN(shape, 7, width=2, mean=[0.5] * shape[0], std=[0.2] * shape[0])(x).shape == (2, 7)
    assert AdversarialGenerator(shape[0], width=2)(x).shape == x.shape
    autoencoder = Autoencoder(shape, 5, width=2)
    assert autoencoder.encode(x).shape == (2, 5)
    assert autoencoder(x).shape == x.shape


def test_the_memory_format_of_plain_cnn_changes_nothing_but_speed():
    network = PlainCNN(width=4, dropout=0)
    copied = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    assert network[2].weight.stride() != copied[2].weight.stride()
    x = torch.rand(3, 1, 28, 28, requires_grad=True)
    for once, again in zip(gradients(network, x), gradients(copied, x), strict=True):
        torch.testing.assert_close(once, again)


def gradients(network, x):
    logits = network(x)
    return logits, *torch.autograd.grad(logits.square().sum(), [x, *network.parameters()])


@pytest.mark.parametrize("output", ["clip", "straight_through", "sigmoid"])
def test_generated_images_are_images_and_only_the_clip_stops_gradients(output):
    torch.manual_seed(0)
    generator = AdversarialGenerator(1, 2, output)
    x = torch.ones(1, 1, 8, 8)
    with torch.no_grad():
        generator.layers[-1].bias.fill_(0.5)
    found = generator(x)
    assert found.min() >= 0
    assert found.max() <= 1
    (gradient,) = torch.autograd.grad(found.sum(), generator.layers[-1].bias)
    assert bool(gradient == 0) == (output == "clip")
    if output != "sigmoid":
        assert torch.equal(found, x)  # pushed beyond white


@pytest.mark.thorough
def test_autoencoder_from_a_checkpoint(tmp_path):
    trained, fresh = Autoencoder((1, 16, 16), 3, 2), Autoencoder((1, 16, 16), 3, 2)
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {f"autoencoder.{name}": value for name, value in trained.state_dict().items()}}, path)
    load_autoencoder(fresh, str(path), "model.checkpoint")
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])
        assert torch.equal(value, trained_autoencoder(str(path), "checkpoint").state_dict()[name])
        assert torch.equal(value, OnManifold(checkpoint=str(path)).autoencoder.state_dict()[name])
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(trained_autoencoder(str(path), "checkpoint").eval()(x), trained.eval()(x))
    with pytest.raises(
        SettingError, match="checkpoint: got None; give that of an autoencoder's training, or a trained"
    ):
        OnManifold()(x, torch.ones(1), keys=[0, 1])
    with pytest.raises(SettingError, match=r"model\.checkpoint: got .*configure the same autoencoder"):
        load_autoencoder(Autoencoder((1, 16, 16), 4, 2), str(path), "model.checkpoint")
    with pytest.raises(SettingError, match=r"model\.checkpoint: got .*no such file"):
        load_autoencoder(fresh, str(tmp_path / "absent.ckpt"), "model.checkpoint")
    torch.save({"state_dict": {"autoencoder.encoder.weight": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(SettingError, match=r"checkpoint: got .*its autoencoder is of another kind"):
        trained_autoencoder(str(tmp_path / "other.ckpt"), "checkpoint")
    path.write_bytes(b"no checkpoint")
    with pytest.raises(SettingError, match=r"model\.checkpoint: got .*its end is missing, or it is of another kind"):
        load_autoencoder(fresh, str(path), "model.checkpoint")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlainCNN((1, 7, 28)), r"image_shape: got \(1, 7, 28\)"),
        (lambda: PlainCNN(num_classes=1), "num_classes: got 1"),
        (lambda: PlainCNN(dropout=1), "dropout: got 1"),
        (lambda: PlainCNN(width=0), "width: got 0"),
        (lambda: PlainCNN(mean=[0.5]), "std: got None"),
        (lambda: AdversarialGenerator(0), "channels: got 0"),
        (lambda: AdversarialGenerator(width=0), "width: got 0"),
        (lambda: AdversarialGenerator(output="tanh"), "output: got 'tanh'; give one of clip"),
        (lambda: Autoencoder((1, 30, 28)), r"image_shape: got \(1, 30, 28\)"),
        (lambda: Autoencoder(code_size=0), "code_size: got 0"),
        (lambda: Autoencoder(width=0), "width: got 0"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(SettingError, match=message):
        make()
