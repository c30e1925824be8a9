"""Per-example losses against their formulas."""

import torch
from scipy.spatial.distance import jensenshannon as scipy_jensen_shannon
from scipy.stats import entropy

from robust.losses import (
    cross_entropy,
    dlr,
    jensen_shannon,
    kl,
    margin,
    probability_margin,
    targeted_dlr,
    vulnerability_weight,
)

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


def test_the_probability_margin_is_between_the_label_and_the_most_likely_other_class():
    p = Z.softmax(1)
    expected = torch.stack([p[0, 0] - p[0, 2], p[1, 2] - p[1, 1]])
    torch.testing.assert_close(probability_margin(Z, Y), expected)
    sure = torch.tensor([[100.0, 0.0], [100.0, 0.0], [5.0, 5.0]])
    assert probability_margin(sure, torch.tensor([0, 1, 1])).tolist() == [1.0, -1.0, 0.0]


def test_the_weight_follows_its_definition_and_alpha_0_weighs_nothing():
    logits = Z.clone().requires_grad_()
    p = Z.softmax(1)
    torch.testing.assert_close(vulnerability_weight(logits, Y, 2.0)[0], torch.exp(-2 * (p[0, 0] - p[0, 2])))
    weights = vulnerability_weight(logits, Y, 0.0)
    assert weights.tolist() == [1.0, 1.0]
    assert (torch.autograd.grad(weights.sum(), logits)[0] == 0).all()
    assert torch.autograd.gradcheck(lambda z: vulnerability_weight(z, Y, 1.5), logits.double())


def test_jensen_shannon_is_entropy_of_the_mean_less_mean_of_entropies():
    torch.manual_seed(0)
    logits = 5 * torch.randn(3, 50, 10, dtype=torch.float64)
    p = logits.softmax(2).numpy()
    expected = entropy(p.mean(0), axis=1) - entropy(p, axis=2).mean(0)
    torch.testing.assert_close(jensen_shannon(*logits), torch.from_numpy(expected))
    two = torch.from_numpy(scipy_jensen_shannon(p[0], p[1], axis=1) ** 2)
    torch.testing.assert_close(jensen_shannon(logits[0], logits[1]), two)


def test_jensen_shannon_is_zero_for_equal_predictions_and_at_most_the_logarithm():
    logits = 10 * torch.randn(20, 10)
    assert jensen_shannon(logits, logits + 3, logits).abs().max() < 1e-6
    sure = 200 * torch.eye(3).unsqueeze(1).expand(3, 4, 3)  # float32 holds no probability of e^-200
    sure = sure.clone().requires_grad_()
    value = jensen_shannon(*sure)
    torch.testing.assert_close(value, torch.full((4,), 3.0).log())
    assert torch.autograd.grad(value.sum(), sure)[0].isfinite().all()
    assert jensen_shannon(*(10 * torch.randn(3, 500, 10))).max() <= torch.tensor(3.0).log()
