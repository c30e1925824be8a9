"""Per-example losses against their formulas."""

import torch

from robust.losses import cross_entropy, dlr, kl, margin, targeted_dlr

Z = torch.tensor([[4.0, 1.0, 2.0, -1.0], [0.0, 3.0, 1.0, 2.0]])
Y = torch.tensor([0, 2])


def test_values():
    log_p = Z.log_softmax(1)
    torch.testing.assert_close(cross_entropy(Z, Y), -torch.stack([log_p[0, 0], log_p[1, 2]]))
    assert margin(Z, Y).tolist() == [-2.0, 2.0]
    torch.testing.assert_close(dlr(Z, Y), torch.tensor([-2 / 3, 1.0]))
    # towards class 3: (z_3 - z_y) over the highest minus the mean of the third and the fourth
    torch.testing.assert_close(targeted_dlr(Z, Y, torch.tensor([3, 3])), torch.tensor([-5 / 4, 1 / 2.5]))


def test_kl_is_the_divergence_from_the_reference():
    reference = torch.randn(2, 4)
    p, q = reference.softmax(1), Z.softmax(1)
    torch.testing.assert_close(kl(Z, reference), (p * (p.log() - q.log())).sum(1))
    torch.testing.assert_close(kl(Z, Z), torch.zeros(2))
