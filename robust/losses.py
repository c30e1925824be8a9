"""Losses of each example: from logits (B, K) to (B,), never reduced.

Those of ``(logits, y)``, y being labels (B,), can be given to an attack, which ascends them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robust.errors import require

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y, (B,).

    >>> cross_entropy(torch.zeros(1, 2), torch.tensor([0]))  # log 2
    tensor([0.6931])
    """
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Highest other logit minus the label's, (B,): positive where misclassified (Carlini & Wagner 2017).

    >>> margin(torch.tensor([[1.0, 3.0, 2.0], [5.0, 3.0, 2.0]]), torch.tensor([0, 0]))
    tensor([ 2., -2.])
    """
    label = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - label


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(softmax(reference) || softmax(logits)), (B,), of two sets of logits (TRADES, Zhang et al. 2019, eq. 5).

    >>> kl(torch.zeros(1, 2), reference=torch.tensor([[0.75, 0.25]]).log())  # 3/4 log 3/2 + 1/4 log 1/2
    tensor([0.1308])
    """
    return F.kl_div(logits.log_softmax(1), reference.log_softmax(1), reduction="none", log_target=True).sum(1)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, (B,): the margin over z_(1) - z_(3); K >= 3 (Croce & Hein 2020, eq. 6).

    >>> dlr(torch.tensor([[4.0, 2.0, 0.0]]), torch.tensor([0]))  # (2 - 4) / (4 - 0)
    tensor([-0.5000])
    """
    require(logits.shape[1] >= 3, "loss", "dlr", "it needs 3 classes; take cross_entropy or margin")
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / _spread(top[:, 0] - top[:, 2])


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Ratio towards class ``target`` (B,): (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2); K >= 4 (ibid., eq. 7).

    >>> y, target = torch.tensor([0]), torch.tensor([1])
    >>> targeted_dlr(torch.tensor([[4.0, 2.0, 0.0, 0.0]]), y, target)  # (2 - 4) / (4 - 0)
    tensor([-0.5000])
    """
    top = logits.topk(4, dim=1).values
    towards = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
    return towards / _spread(top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]))


def _spread(difference: Tensor) -> Tensor:
    """Denominator of the ratios: 1 where the logits tie, not the 1e-12 of the published code, which has a scale."""
    return torch.where(difference > 0, difference, 1.0)


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    """p_y - max_{t != y} p_t, (B,) in [-1, 1]: positive where classified correctly (weighted minimax risk, Def. 1).

    >>> logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    >>> probability_margin(logits, torch.tensor([0])), probability_margin(logits, torch.tensor([2]))
    (tensor([0.3000]), tensor([-0.5000]))
    """
    p = logits.softmax(1)
    label = p.gather(1, y[:, None]).squeeze(1)
    return label - p.scatter(1, y[:, None], -1.0).amax(1)


def vulnerability_weight(logits: Tensor, y: Tensor, alpha: float) -> Tensor:
    """exp(-alpha * :func:`probability_margin`), (B,): differentiable, exactly 1 where alpha is 0 (ibid., eq. 7).

    >>> logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    >>> vulnerability_weight(logits, torch.tensor([0]), alpha=1.0)  # exp(-0.3)
    tensor([0.7408])
    >>> vulnerability_weight(logits, torch.tensor([0]), alpha=0.0)
    tensor([1.])
    """
    return (-alpha * probability_margin(logits, y)).exp()


def soft_cross_entropy(logits: Tensor, reference: Tensor) -> Tensor:
    """-sum_k p_k log q_k, (B,), with p = softmax(reference) and q = softmax(logits) (robustness framework, Sec. 3).

    >>> soft_cross_entropy(torch.zeros(1, 4), reference=torch.tensor([[3.0, 1.0, 0.0, 2.0]]))  # log 4
    tensor([1.3863])
    """
    return -(reference.softmax(1) * logits.log_softmax(1)).sum(1)


def cross_lipschitz(logits: Tensor, x: Tensor) -> Tensor:
    """``1 / K^2 sum_{l,m} |grad f_l(x) - grad f_m(x)|^2``, (B,), of logits (B, K) of images ``x`` (B, C, H, W).

    By the identity ``2 / K sum_l |g_l|^2 - 2 / K^2 |sum_l g_l|^2``, in K backward passes; it can be differentiated. The
    logits of an image must not depend on the others of the batch. Source: Hein & Andriushchenko 2017, eq. 5.

    >>> x = torch.ones(1, 1, 2, 2, requires_grad=True)
    >>> total = x.flatten(1).sum(1)
    >>> cross_lipschitz(torch.stack([total, 2 * total], 1), x).detach()  # 2 / 2^2 of a difference of ones in 4 pixels
    tensor([2.])
    """
    K = logits.shape[1]
    each = torch.stack([torch.autograd.grad(f.sum(), x, create_graph=True)[0].flatten(1) for f in logits.unbind(1)])
    return 2 / K * each.square().sum((0, 2)) - 2 / K**2 * each.sum(0).square().sum(1)


def jensen_shannon(*logits: Tensor) -> Tensor:
    """Mean over the predictions q of KL(q || their mean), (B,) in [0, log n], of n sets of logits (B, K).

    Source: multi-norm training (MNG-AC), adversarial consistency; there n = 3.

    >>> sure, opposite = torch.tensor([[50.0, -50.0]]), torch.tensor([[-50.0, 50.0]])
    >>> jensen_shannon(sure, opposite)  # the largest there is, log 2
    tensor([0.6931])
    """
    log_q = torch.stack(logits).log_softmax(2)
    log_mean = log_q.logsumexp(0) - math.log(len(logits))  # exact, where the published code cuts the mean at 1e-7
    return (log_q.exp() * (log_q - log_mean)).sum(2).mean(0)
