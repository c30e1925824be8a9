"""The own verifier against auto_LiRPA: the same margins and the same fused loss, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robust.bounds import FeedForwardVerifier, LirpaVerifier
from robust.networks import DMLarge, DMSmall
from robust.threat_models import PixelBox
from tests.random_networks import networks_for_auto_lirpa, random_case

sizes = st.sampled_from([1e-3, 0.03, 0.1, 0.5])


def compare(network, x, y, budgets, tolerance):
    box = PixelBox(budgets).interval(x)
    for method in ("ibp", "crown-ibp"):
        ours = FeedForwardVerifier(method).margins(network, box, y)
        theirs = LirpaVerifier(method=method).margins(network, box, y)
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    lirpa = LirpaVerifier()
    for crown_weight in (0.0, 0.5, 1.0):
        ours = FeedForwardVerifier().cross_entropy(network, box, y, crown_weight)
        theirs = lirpa.cross_entropy(network, box, y, crown_weight)
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@settings(max_examples=4, deadline=None)
@given(networks_for_auto_lirpa, sizes)
def test_margins_and_fused_loss_agree_on_random_networks(network, size):
    compare(network, *random_case(network, size), tolerance=1e-5)


@pytest.mark.parametrize("network", [DMSmall, pytest.param(DMLarge, marks=pytest.mark.slow)])
def test_margins_and_fused_loss_agree_on_the_papers_networks(network):
    torch.manual_seed(0)
    x = torch.rand(2, 1, 14, 14)
    compare(network((1, 14, 14)), x, torch.tensor([3, 7]), 0.05 * torch.rand_like(x), tolerance=1e-5)


@pytest.mark.parametrize("crown_weight", [0.0, 0.5, 1.0])
def test_gradients_of_the_fused_loss_agree(crown_weight):
    torch.manual_seed(0)
    network, x, y = DMSmall((1, 14, 14)), torch.rand(3, 1, 14, 14), torch.tensor([1, 5, 9])
    budgets = (0.1 * torch.rand_like(x)).requires_grad_()
    gradients = [
        torch.autograd.grad(
            verifier.cross_entropy(network, PixelBox(budgets).interval(x), y, crown_weight).mean(),
            [budgets, *network.parameters()],
        )
        for verifier in (FeedForwardVerifier(), LirpaVerifier())
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
