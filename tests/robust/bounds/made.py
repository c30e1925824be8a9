"""Networks whose logits are known by construction."""

import torch
from torch import nn


def softplus_network(threshold, gap=0.02):
    """A network of one Softplus at 1.5 times its threshold, in float64, and its image.

    By log(1 + exp h) class 0 wins by what that exceeds h, less ``gap``; by h, as above the threshold, class 1 wins by
    ``gap``.
    """
    h = 1.5 * threshold if threshold < 20 else 20.0 + 1e-6
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Softplus(threshold=threshold), nn.Linear(1, 2))
    network = network.double().eval()
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.fill_(h)
        network[3].weight.copy_(torch.tensor([[1.0], [0.0]]))
        network[3].bias.copy_(torch.tensor([0.0, h + gap]))
    return network, torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
