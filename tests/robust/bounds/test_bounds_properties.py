"""Properties of the own bounds on random networks: scales from 1e-10 to 1e10, asymmetric boxes, hooks anywhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robust.bounds import FeedForwardVerifier
from robust.threat_models import Box, LinfBall
from tests.random_networks import corners_and_points, networks, random_case


def rescaled(network, exponent):
    """The first affine layer's outputs times a power of two, taken back behind the first ReLU's next affine layer."""
    affine = [module for module in network if isinstance(module, (nn.Conv2d, nn.Linear))]
    if any(isinstance(module, nn.BatchNorm2d) for module in network):
        return network, False
    with torch.no_grad():
        affine[0].weight.mul_(2.0**exponent), affine[0].bias.mul_(2.0**exponent)
        affine[1].weight.mul_(2.0**-exponent)
    return network, True


@settings(max_examples=25, deadline=None)
@given(networks, st.integers(-33, 33), st.integers(0, 2**31), st.sampled_from(["ibp", "crown-ibp", "tightest"]))
def test_bounds_hold_and_stay_the_same_at_every_scale_of_activations(network, exponent, seed, method):
    x, y, _ = random_case(network, 0.1)
    generator = torch.Generator().manual_seed(seed)
    below, above = 0.2 * torch.rand(2, *x.shape, generator=generator) ** 3
    box = Box((x - below).clamp(min=0), (x + above).clamp(max=1))  # asymmetric, some sides almost none
    verifier = FeedForwardVerifier(method)
    plain = verifier.margins(network, box, y)
    network, moved = rescaled(network, exponent)
    margins = verifier.margins(network, box, y)
    if moved:  # powers of two change no rounding
        torch.testing.assert_close(margins, plain, rtol=1e-6, atol=1e-6)
    low, _ = verifier.margin_range(network, box, y)
    mix = torch.rand(80, *x.shape, generator=generator, dtype=torch.double)
    mix[::2] = mix[::2].round()
    points = box.lower.double() + (box.upper.double() - box.lower.double()) * mix
    with torch.no_grad():
        logits = network.double()(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    reached = logits.gather(2, y.expand(len(points), -1)[..., None]) - logits
    for i, label in enumerate(y):
        others = [k for k in range(logits.shape[2]) if k != label]
        assert (low[i].double() <= reached[:, i, others].amin(0)).all()


@settings(max_examples=20, deadline=None)
@given(networks, st.data())
def test_what_a_hook_adds_is_a_part_of_the_network_until_it_is_removed(network, data):
    index = data.draw(st.integers(0, len(network) - 1))
    shift = data.draw(st.sampled_from([0.0, 0.02, -0.5]))
    x, y, budgets = random_case(network, 0.05)
    box = Box((x - budgets).clamp(min=0), (x + budgets).clamp(max=1))
    verifier = FeedForwardVerifier("tightest")
    before = verifier.margins(network, box, y)
    handle = network[index].register_forward_hook(lambda module, inputs, output: output + shift)
    logits = network(x)
    margins = (logits.gather(1, y[:, None]) - logits).detach()
    exact = margins[torch.ones_like(logits).scatter(1, y[:, None], 0).bool()].view(len(x), -1)
    torch.testing.assert_close(verifier.margins(network, Box(x, x), y), exact, rtol=1e-4, atol=1e-4)
    handle.remove()
    torch.testing.assert_close(verifier.margins(network, box, y), before, rtol=0, atol=0)


@pytest.mark.parametrize("hook", [torch.square, torch.tanh], ids=["square", "tanh"])
@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.AvgPool2d(2, 1, padding=1), nn.AdaptiveAvgPool2d(1)], ids=repr)
def test_what_a_hook_of_average_pooling_computes_is_bounded(pool, hook):
    """A layer that called its module would agree with it on every image, and be wrong on every box."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), pool, nn.Flatten(), nn.LazyLinear(4)).eval()
    x = torch.rand(2, 1, 6, 6)
    y = network(x).argmax(1)
    pool.register_forward_hook(lambda module, inputs, output: hook(output))
    budgets = torch.full_like(x, 0.1)
    margins = FeedForwardVerifier("ibp").margins(network, LinfBall(0.1).interval(x), y)
    points = corners_and_points(x, budgets, 60)
    logits = network(points.flatten(0, 1)).unflatten(0, points.shape[:2])
    for i, label in enumerate(y):
        others = [k for k in range(4) if k != label]
        assert (margins[i] <= (logits[:, i, label, None] - logits[:, i, others]).amin(0) + 1e-5).all()
