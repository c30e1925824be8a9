"""The triple (Q, H, G) and what follows from it (general robustness framework, Tibo, Jaeger, Larsen 2022, Sec. 2-3).

| symbol | here | what |
| --- | --- | --- |
| R_Q(x, epsilon) | ``basic_measure`` | Q(f(X) = f(x) given X in the ball), Def. 1, by samples: eq. 8 |
| rho = H(R_Q) G | ``Score.robustness`` | robustness function, Def. 2 |
| R | ``robust.metrics.SampledScore`` | mean over images and radii, eq. 9, the sample form of Def. 3 |
| Sigma | ``draw_epsilons`` | radii, uniform in [0, d] with d the cube's diameter |

| score | Q | H(p) | G(x, epsilon) |
| --- | --- | --- | --- |
| R1 | uniform | 1[p = 1] | 1 |
| R2 | uniform | 1[p = 1] | p(x) |
| R3 | P | 1[p = 1] | p(x) |
| R4 | P | p | p(x) / epsilon |

The label-aware scores (example 5) are R2 and R3 of a sampler inside :class:`robust.scores.SameLabel`. R2 of image
classifiers is not estimated by samples but by the distance to the boundary: :mod:`robust.scores.margins`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robust.checks import check_images, check_logits
from robust.scores.samplers import Neighbours, Sampler, UniformBall
from robust.seeds import generator
from robust.threat_models import diameter

Classify = Callable[[Tensor], Tensor]


def predicted(network: nn.Module, x: Tensor) -> Tensor:
    """Classes (N,) of images (N, C, H, W), for :meth:`Score.measure`.

    >>> predicted(nn.Flatten(), torch.tensor([0.25, 0.75]).view(1, 1, 1, 2))
    tensor([1])

    Raises:
        NonFiniteLogitsError: if logits are NaN or infinite: all images would be of the same class, the best score.
    """
    logits: Tensor = network(x)
    check_logits(logits, len(x))
    return logits.argmax(1)


def average_case(p: Tensor) -> Tensor:
    """H(p) = p: the average case.

    >>> average_case(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return p


def worst_case(p: Tensor) -> Tensor:
    """H(p) = 1[p = 1]: the worst case (eq. 4).

    >>> worst_case(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0., 0., 1.])
    """
    return (p == 1).to(p.dtype)


@dataclass(frozen=True)
class Weight:
    """G(x, epsilon) = density(x) * epsilon^power.

    >>> Weight(power=-1).of_radius(torch.tensor([0.5, 2.0]))
    tensor([2.0000, 0.5000])

    Args:
        density: ``"data"`` for p(x): images are those of the data; ``"uniform"`` for 1: they are drawn from the cube.
        power: exponent of epsilon.
    """

    density: Literal["data", "uniform"] = "data"
    power: int = 0

    def of_radius(self, epsilons: Tensor) -> Tensor:
        """The factor of each radius (E,)."""
        return epsilons**self.power


def basic_measure(agrees: Tensor, inside: Tensor) -> Tensor:
    """R_S(x, epsilon), (B, E): the fraction of S_epsilon(x) that is classified like ``x`` (eq. 8).

    It is 1 where there is no sample in the ball: the ball holds the image itself, and smaller balls are safer.

    >>> agrees = torch.tensor([[True, True, False, True]])
    >>> inside = torch.tensor([[[True, True, False, False], [True, True, True, True], [False, False, False, False]]])
    >>> basic_measure(agrees, inside)  # of 2, 4 and 0 samples in the ball
    tensor([[1.0000, 0.7500, 1.0000]], dtype=torch.float64)

    Args:
        agrees: whether f(x') = f(x) for each sample x', bool (B, N).
        inside: whether each sample is in each ball, bool (B, E, N).
    """
    count = inside.sum(2)
    agreeing = (inside & agrees[:, None]).sum(2)
    return torch.where(count > 0, agreeing.double() / count.clamp(min=1), 1.0)


class Score:
    """A robustness score.

    Args:
        sampler: distribution Q.
        reward: function H, elementwise on [0, 1].
        weight: weight G.
    """

    def __init__(self, sampler: Sampler, reward: Callable[[Tensor], Tensor], weight: Weight) -> None:
        self.sampler, self.reward, self.weight = sampler, reward, weight

    def points(self, x: Tensor, keys: list[int]) -> Tensor:
        """The points of the outer integral: the images ``x`` (B, C, H, W), or as many points of the cube."""
        if self.weight.density == "data":
            return x
        # other numbers than the sampler's, whose keys end with 0
        return torch.stack([torch.rand(x.shape[1:], generator=generator(key, 1), dtype=x.dtype) for key in keys]).to(x)

    def measure(self, classify: Classify, x: Tensor, epsilons: Tensor, keys: list[int]) -> tuple[Tensor, Neighbours]:
        """Basic measure (B, E), and the samples that it was taken on.

        Args:
            classify: images (N, C, H, W) to predicted classes (N,), such as :func:`predicted` of a network.
            x: images (B, C, H, W).
            epsilons: radii (E,).
            keys: keys of the draws, one for each image.

        Raises:
            SettingError: if they are no images in [0, 1].
        """
        check_images(x)
        neighbours = self.sampler(x, epsilons, keys)
        predicted = classify(neighbours.images.flatten(0, 1)).view(neighbours.images.shape[:2])
        return basic_measure(predicted == classify(x)[:, None], neighbours.inside), neighbours

    def robustness(self, measure: Tensor, epsilons: Tensor) -> Tensor:
        """rho(x, epsilon) without p(x), (B, E), of the basic measure (B, E): the images are drawn from p."""
        return self.reward(measure) * self.weight.of_radius(epsilons.to(measure))


class R1(Score):
    """Mean distance to the boundary over the whole cube (example 1)."""

    def __init__(self, sampler: UniformBall) -> None:
        super().__init__(sampler, worst_case, Weight("uniform"))


class R2(Score):
    """Mean distance to the boundary over the data: the area under the margin curve (example 2)."""

    def __init__(self, sampler: UniformBall) -> None:
        super().__init__(sampler, worst_case, Weight("data"))


class R3(Score):
    """On the manifold, worst case (example 3)."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__(sampler, worst_case, Weight("data"))


class R4(Score):
    """On the manifold, average case, small balls weighted up (example 4)."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__(sampler, average_case, Weight("data", power=-1))


def draw_epsilons(count: int, image_shape: tuple[int, ...], seed: int) -> Tensor:
    """Sigma: radii (count,) in float64, uniform in [0, d] with d the cube's diameter; rising.

    >>> epsilons = draw_epsilons(1000, image_shape=(1, 28, 28), seed=0)
    >>> bool((epsilons.diff() >= 0).all()), round(epsilons.mean().item()), round(epsilons.max().item())
    (True, 14, 28)
    """
    drawn = torch.rand(count, generator=generator(seed), dtype=torch.float64)
    return drawn.sort().values * diameter(image_shape)
