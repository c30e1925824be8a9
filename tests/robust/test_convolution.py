"""The own convolution and its adjoint are PyTorch's, and so are the gradients that attacks follow."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust.attacks import PGD
from robust.convolution import ConvSettings, adjoint, conv, fast_image_gradients
from robust.threat_models import LinfBall

SIZES = {
    "kernel": st.integers(1, 3),
    "stride": st.integers(1, 3),
    "padding": st.integers(0, 2),
    "dilation": st.integers(1, 2),
    "side": st.integers(6, 8),
    "channels": st.integers(1, 2),
    "outputs": st.sampled_from([3, 10, 20]),  # with PyTorch's gradient, and with the matrix product
}


@settings(max_examples=30, deadline=None)
@given(**SIZES)
def test_convolution_and_its_adjoint_are_adjoint_and_differentiable(
    kernel, stride, padding, dilation, side, channels, outputs
):
    x = torch.randn(1, channels, side, side, dtype=torch.double, requires_grad=True)
    weight = torch.randn(outputs, channels, kernel, kernel, dtype=torch.double, requires_grad=True)
    bias = torch.randn(outputs, dtype=torch.double, requires_grad=True)
    how = ConvSettings((stride, stride), (padding, padding), (dilation, dilation))
    plain = F.conv2d(x, weight, bias, stride, padding, dilation)
    torch.testing.assert_close(conv(x, weight, bias, how), plain)
    rows = torch.randn_like(plain).detach().requires_grad_()
    (back,) = torch.autograd.grad(plain, x, rows.detach())
    torch.testing.assert_close(adjoint(rows, weight, x.shape[1:], how), back)
    assert torch.autograd.gradcheck(lambda *inputs: conv(*inputs, how), (x, weight, bias), fast_mode=True)
    assert torch.autograd.gradcheck(lambda A, W: adjoint(A, W, x.shape[1:], how), (rows, weight), fast_mode=True)


@settings(max_examples=40, deadline=None)
@given(**SIZES, bias=st.booleans(), channels_last=st.booleans())
def test_any_layer_has_pytorchs_image_gradient(
    kernel, stride, padding, dilation, side, channels, outputs, bias, channels_last
):
    layer = nn.Conv2d(channels, outputs, kernel, stride, padding, dilation, bias=bias).double()
    layer = layer.to(memory_format=torch.channels_last) if channels_last else layer
    x = torch.randn(2, channels, side, side, dtype=torch.double, requires_grad=True)
    direction = torch.randn_like(layer(x))
    with fast_image_gradients(layer):
        out = layer(x)
    torch.testing.assert_close(out, layer(x))
    (expected,) = torch.autograd.grad(layer(x), x, direction)
    torch.testing.assert_close(torch.autograd.grad(out, x, direction)[0], expected)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(1, 16, 3, padding="same"),
        nn.Conv2d(1, 16, (3, 1), (2, 1), padding=(1, 0)),
        nn.Conv2d(2, 40, 3, groups=2),
        nn.Conv2d(1, 16, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(16, 16, 3),
    ],
    ids=["same", "uneven", "groups", "reflect", "many_channels"],
)
def test_special_layers_have_pytorchs_image_gradient(layer):
    x = torch.rand(2, layer.in_channels, 6, 7, requires_grad=True)
    with fast_image_gradients(layer):
        out = layer(x)
    direction = torch.randn_like(out)
    (expected,) = torch.autograd.grad(layer(x), x, direction)
    torch.testing.assert_close(torch.autograd.grad(out, x, direction)[0], expected)


def test_lazy_layers_are_left_alone():
    layer = nn.LazyConv2d(16, 3)
    with fast_image_gradients(layer):
        assert layer(torch.rand(2, 1, 6, 6)).shape == (2, 16, 4, 4)


def test_a_single_image_without_a_batch_is_convolved():
    x, layer = torch.rand(1, 6, 6, requires_grad=True), nn.Conv2d(1, 16, 3)
    with fast_image_gradients(layer):
        assert torch.equal(layer(x), layer(x[None])[0])


def test_wrong_images_get_pytorchs_error():
    layer = nn.Conv2d(1, 16, 3)
    with (
        fast_image_gradients(layer),
        pytest.raises(RuntimeError, match=r"expected input.* to have 1 channels, but got 2"),
    ):
        layer(torch.rand(2, 2, 6, 6, requires_grad=True))


def test_layers_are_as_they_were_behind_it_and_within_another():
    layer = nn.Conv2d(1, 16, 3)
    with fast_image_gradients(layer):
        with fast_image_gradients(nn.Sequential(layer)):
            pass
        assert "_conv_forward" in vars(layer)
    assert "_conv_forward" not in vars(layer)


@pytest.mark.thorough
def test_a_compiled_network_is_attacked_as_itself():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    x, y = torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    attack = PGD(3, start="clean")
    found = attack(torch.compile(network, backend="eager"), LinfBall(0.1), x, y)
    torch.testing.assert_close(found, attack(network, LinfBall(0.1), x, y))


def test_weights_keep_their_gradient():
    layer, x = nn.Conv2d(1, 16, 3), torch.rand(2, 1, 6, 6, requires_grad=True)
    expected = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    with fast_image_gradients(layer):
        found = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_activation_behind_it_may_work_in_place(frozen):
    layers = nn.Conv2d(1, 16, 3), nn.Flatten(), nn.Linear(256, 3)
    inplace, plain = (nn.Sequential(layers[0], nn.ReLU(inplace=each), *layers[1:]) for each in (True, False))
    inplace.requires_grad_(not frozen)
    x, y = torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    attack = PGD(3, start="clean")
    torch.testing.assert_close(attack(inplace, LinfBall(0.1), x, y), attack(plain, LinfBall(0.1), x, y))


def test_complex_weights_and_keywords_are_pytorchs():
    layer, x = nn.Conv2d(1, 16, 3, dtype=torch.cfloat), torch.rand(2, 1, 6, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x.to(torch.cfloat)).abs().sum(), x)
    with fast_image_gradients(layer):
        out = layer._conv_forward(input=x.to(torch.cfloat), weight=layer.weight, bias=layer.bias)
        (found,) = torch.autograd.grad(out.abs().sum(), x)
    torch.testing.assert_close(found, expected)


def test_a_copy_made_in_an_attack_is_a_plain_layer():
    layer, x = nn.Conv2d(1, 16, 3), torch.rand(2, 1, 6, 6)
    with fast_image_gradients(layer):
        copied = copy.deepcopy(layer)
    with torch.no_grad():
        copied.weight.zero_()
    assert not (copied(x) - copied.bias[:, None, None]).any()  # its own weights
    assert layer(x).any()


def test_functional_transforms_go_through_it():
    layer, x = nn.Conv2d(1, 16, 3), torch.rand(4, 1, 6, 6)

    def each(image):
        return layer(image[None]).square().sum()

    expected = torch.func.vmap(torch.func.grad(each))(x)
    with fast_image_gradients(layer):
        found = torch.func.vmap(torch.func.grad(each))(x)
    torch.testing.assert_close(found, expected)


def test_a_computed_weight_is_not_computed_on_entry():
    layer = torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 16, 3))
    before = layer.parametrizations.weight[0]._u.clone()
    with fast_image_gradients(layer):
        pass
    assert torch.equal(layer.parametrizations.weight[0]._u, before)


def test_an_attack_computes_no_gradient_of_the_first_layers_weights():
    network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    x, y = torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        PGD(3)(network, LinfBall(0.1), x, y)
    names = {event.key for event in profile.key_averages()}
    assert "aten::col2im" in names  # the fast gradient
    assert "aten::convolution_backward" not in names  # neither PyTorch's, nor that of the weights
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
