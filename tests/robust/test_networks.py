"""Parameter counts of the papers' networks, the generator's start, normalisation."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from robust.budgets import relative_budgets
from robust.errors import SettingError
from robust.networks import (
    BudgetGenerator,
    ConvolutionalBudgetGenerator,
    DMLarge,
    DMSmall,
    NoiseGenerator,
    Normalize,
    PreActResNet18,
    ResNet18,
    SmallCNN,
    WideResNet,
)


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "shape", "classes", "parameters"),
    [
        (DMSmall, (1, 28, 28), 10, 329_606),
        (DMSmall, (3, 32, 32), 10, 470_918),
        (DMSmall, (1, 28, 28), 20, 330_616),
        (DMLarge, (1, 28, 28), 10, 13_257_290),
        (DMLarge, (3, 32, 32), 10, 17_190_602),
        (DMLarge, (3, 36, 64), 10, 38_162_122),
    ],
)
def test_parameter_counts_of_classifiers(network, shape, classes, parameters):
    built = network(shape, classes)
    assert count(built) == parameters
    assert built(torch.rand(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize(
    ("network", "shape", "classes", "parameters"),
    [
        (SmallCNN(), (1, 28, 28), 10, 312_202),
        (ResNet18(), (3, 32, 32), 10, 11_173_962),
        (ResNet18(num_classes=100), (3, 32, 32), 100, 11_220_132),
    ],
)
def test_parameter_counts_of_attacked_classifiers(network, shape, classes, parameters):
    assert count(network) == parameters
    assert network.eval()(torch.rand(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize(
    ("shape", "stride", "millions"),
    [
        ((1, 28, 28), 2, 0.308),
        ((3, 32, 32), 2, 1.576),
        ((3, 36, 64), 2, 7.97),
        ((1, 28, 28), 1, 4.92),
        ((3, 32, 32), 1, 25.2),
    ],
)
def test_parameter_counts_of_the_budget_generator(shape, stride, millions):
    generator = BudgetGenerator(shape, stride)
    assert count(generator) / 1e6 == pytest.approx(millions, rel=5e-3)
    assert generator(torch.rand(2, *shape)).shape == (2, *shape)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(("kind", "size"), [(BudgetGenerator, (3, 32, 32)), (ConvolutionalBudgetGenerator, 3)])
def test_the_generator_starts_near_uniform_and_shares_channels_when_asked(kind, size, share):
    torch.manual_seed(0)
    x = torch.rand(4, 3, 32, 32)
    outputs = kind(size, initial_output=0.75, share_channels=share)(x)
    assert outputs.min() > 0.65
    assert outputs.max() < 0.85
    assert torch.equal(outputs[:, 0], outputs[:, 1]) is share
    budgets = relative_budgets(outputs, 8 / 255, 0.125, 2.0)
    assert 0.75 < budgets.min() < budgets.max() < 1.3


@pytest.mark.parametrize("scale", [10.0, 10_000.0])
def test_a_spread_is_the_std_of_the_sigmoids_inputs_whatever_the_weights(scale):
    torch.manual_seed(0)
    generator, x = BudgetGenerator((2, 6, 5), initial_output=0.8, spread=3.0).double(), torch.rand(4, 2, 6, 5).double()
    with torch.no_grad():
        generator.layers[-1].weight.mul_(scale)
    inputs = torch.logit(generator(x)).flatten(1)
    torch.testing.assert_close(inputs.std(1, correction=0), torch.full_like(inputs[:, 0], 3.0), rtol=0.01, atol=0)
    torch.testing.assert_close(inputs.mean(1), torch.full_like(inputs[:, 0], math.log(4)), rtol=0, atol=1e-6)
    free = BudgetGenerator((2, 6, 5), initial_output=0.8)
    assert generator.state_dict().keys() - free.state_dict().keys() == {"bias"}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 7, 12), (1, 6, 9)])
def test_the_convolutional_generator_equals_its_formula_on_images_of_any_size(shape, stride):
    torch.manual_seed(0)
    generator = ConvolutionalBudgetGenerator(1, initial_output=0.3, stride=stride).double()
    assert count(generator) == (3_569 if stride == 1 else 3_569 + 3 * (8 * 9 + 1))
    x = torch.rand(2, *shape, dtype=torch.double)
    k0, b0, k1, b1, w, b, k2, b2, k3, b3 = generator.parameters()

    def padded(images, margin):
        rows, columns = (torch.arange(-margin, side + margin).clamp(0, side - 1) for side in images.shape[2:])
        return images[:, :, rows][:, :, :, columns]

    near = F.conv2d(padded(x, 2), k0, b0).relu()[..., ::stride, ::stride]
    dilation = 2 // stride
    features = F.conv2d(padded(near, 2 * dilation), k1, b1, dilation=dilation).relu()
    context = features.flatten(2).mean(2) @ w.T + b
    hidden = F.conv2d(padded((features + context[:, :, None, None]).relu(), 2), k2, b2).relu()
    outputs, expected = F.conv2d(padded(hidden, 1), k3, b3).sigmoid(), torch.empty_like(x)
    for i, j in product(range(shape[1]), range(shape[2])):
        channel = i % stride * stride + j % stride
        expected[:, 0, i, j] = outputs[:, channel, i // stride, j // stride]
    torch.testing.assert_close(generator(x), expected)
    torch.testing.assert_close(b3.sigmoid(), torch.full_like(b3, 0.3))


def test_with_stride_2_channels_that_share_budgets_have_one_number_for_each_pixel():
    generator = ConvolutionalBudgetGenerator(3, share_channels=True, stride=2)
    outputs = generator(torch.rand(2, 3, 9, 7))
    assert outputs.shape == (2, 3, 9, 7)
    assert torch.equal(outputs[:, 0], outputs[:, 2])
    own = ConvolutionalBudgetGenerator(3, stride=2)(torch.rand(2, 3, 9, 7))
    assert own.shape == (2, 3, 9, 7)
    assert not torch.equal(own[:, 0], own[:, 2])


def test_the_convolutional_generator_moves_with_what_it_sees():
    """No pixel knows where it is, also near the edge, if it sees the same."""
    torch.manual_seed(0)
    generator = ConvolutionalBudgetGenerator().double()
    x = torch.zeros(1, 1, 30, 30, dtype=torch.double)
    x[..., 12:18, 12:18] = torch.rand(6, 6)
    outputs, moved = generator(x), generator(x.roll((3, -2), (2, 3)))
    torch.testing.assert_close(moved, outputs.roll((3, -2), (2, 3)))
    assert outputs.std() > 1e-5


def test_the_convolutional_generator_sees_the_whole_image():
    torch.manual_seed(0)
    x = torch.rand(1, 1, 40, 40, requires_grad=True)
    ConvolutionalBudgetGenerator()(x)[0, 0, 0, 0].backward()
    assert x.grad[0, 0, -1, -1] != 0, "beyond the convolutions' field of 11 pixels: by the context"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, "channels: got 0; give the images' number of channels, at least 1"),
        ({"width": 0}, "width: got 0; give the features' number of channels, at least 1"),
        ({"initial_output": 1.0}, "initial_output: got 1.0; give a value strictly between 0 and 1"),
        ({"stride": 3}, "stride: got 3; give 1 or 2"),
    ],
)
def test_wrong_settings_of_the_convolutional_generator(settings, message):
    with pytest.raises(SettingError, match=message):
        ConvolutionalBudgetGenerator(**settings)


def test_the_convolutional_generator_refuses_images_of_other_channels():
    with pytest.raises(SettingError, match="channels: got 3; the images have 1 channels; give that"):
        ConvolutionalBudgetGenerator(3)(torch.rand(2, 1, 8, 8))


def test_parameter_counts_of_pre_activation_networks():
    assert count(WideResNet()) == 36_479_194
    assert count(PreActResNet18()) == 11_269_640
    small = WideResNet(10, 1, num_classes=7, channels=1, mean=[0.5], std=[0.2])
    assert small(torch.rand(2, 1, 28, 28)).shape == (2, 7)


def test_a_pre_activation_network_adds_what_the_blocks_give_to_what_they_take():
    torch.manual_seed(0)
    network = WideResNet(10, 1).eval()
    inputs, sums = [], []
    blocks = [block for stage in network.stages for block in stage]
    for block in blocks:
        block.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
        block.addition.register_forward_hook(lambda module, args, output: sums.append(output))
    x = torch.rand(2, 3, 32, 32)
    logits = network(x)
    assert [tuple(total.shape[1:]) for total in sums] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    torch.testing.assert_close(inputs[0], network.conv1(x))
    block = blocks[1]
    active = block.bn1(sums[0]).relu()
    expected = block.conv2(block.bn2(block.conv1(active)).relu()) + block.shortcut(active)
    torch.testing.assert_close(sums[1], expected)
    torch.testing.assert_close(logits, network.linear(network.bn(sums[2]).relu().mean((2, 3))))


@pytest.mark.parametrize(
    ("channels", "conditional", "parameters"),
    [(3, True, 4_243), (3, False, 4_183), (1, True, 4_121), (1, False, 4_101)],
)
def test_the_noise_generator(channels, conditional, parameters):
    torch.manual_seed(0)
    generator = NoiseGenerator(channels, conditional)
    assert count(generator) == parameters
    x, other = torch.rand(2, 2, channels, 9, 9)
    noise = []
    for images in (x, other, x):
        torch.manual_seed(1)
        noise.append(generator(images))
    assert noise[0].shape == x.shape
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[0], noise[1]) is not conditional
    assert not torch.equal(noise[0], generator(x)), "drawn anew"
    torch.nn.init.zeros_(generator.layers[-1].weight)
    torch.manual_seed(1)
    alone = generator(x)
    torch.manual_seed(1)
    assert torch.equal(alone, torch.randn(2, channels, 11, 11)[:, :, 1:-1, 1:-1]), "z itself is added"


def test_normalize():
    x = torch.rand(2, 3, 4, 4)
    mean, std = [0.1, 0.2, 0.3], [0.5, 1.0, 2.0]
    expected = torch.stack([(x[:, i] - mean[i]) / std[i] for i in range(3)], 1)
    torch.testing.assert_close(Normalize(mean, std)(x), expected)
    assert torch.equal(DMSmall((3, 12, 12), mean=mean, std=std)[0](x), Normalize(mean, std)(x))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DMSmall((1, 9, 28)), "image_shape"),
        (lambda: DMSmall(num_classes=1), "num_classes: got 1"),
        (lambda: DMLarge(mean=[0.5]), "std"),
        (lambda: WideResNet(27), "depth: got 27; give 6 n"),
        (lambda: WideResNet(width=0), "width: got 0"),
        (lambda: PreActResNet18(1), "num_classes: got 1"),
        (lambda: WideResNet(mean=[0.5]), "std"),
        (lambda: Normalize([0.5], [0.0]), "std.*positive"),
        (lambda: Normalize([0.5], [0.1, 0.2]), "std.*give 1 values"),
        (lambda: BudgetGenerator(initial_output=1.0), "initial_output: got 1.0"),
        (lambda: BudgetGenerator(spread=0.0), "spread: got 0.0; give a positive number"),
        (lambda: BudgetGenerator((1, 8, 8))(torch.rand(2, 1, 9, 9)), r"^image_shape.*\(1, 9, 9\)"),
    ],
)
def test_wrong_settings(build, message):
    with pytest.raises(SettingError, match=message):
        build()
