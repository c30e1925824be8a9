"""Distributions Q of a robustness score: each draws from Q given the ball around an image.

All draws depend on an integer key for each image, and on nothing else: models are compared on the same draws, whatever
the number of processes. Source: general robustness framework (Tibo, Jaeger, Larsen 2022), Sec. 2, 4.2; examples 1-5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from robust.checkpoints import load_weights
from robust.checks import check_images, check_logits
from robust.errors import SettingError, require
from robust.networks.autoencoder import Autoencoder, load_autoencoder, trained_autoencoder
from robust.scores.cut_ball import draw_from_cut_balls
from robust.seeds import generator

Labelling = Callable[[Tensor], Tensor]
CHUNK_SIZE = 2048  # images that a network has at a time


class Neighbours(NamedTuple):
    """Samples S_epsilon(x) for several epsilons."""

    images: Tensor  # (B, N, C, H, W)
    inside: Tensor  # (B, E, N) bool: which of them are in S_epsilon(x)
    codes: Tensor | None = None  # (B, N, Z), what the images are decoded from


class Sampler(Protocol):
    """A distribution Q on images in [0, 1]."""

    def __call__(self, x: Tensor, epsilons: Tensor, keys: list[int]) -> Neighbours:
        """Draws from Q, given the open l2 ball around ``x`` (B, C, H, W), for radii (E,); one key for each image."""


class UniformBall:
    """Q uniform on [0, 1]^m: independent and exactly uniform samples of ball and cube's intersection.

    See :mod:`robust.scores.cut_ball`. Drawn on the CPU; memory for E * samples images.

    >>> x, epsilons = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0.1, 0.3])
    >>> found = UniformBall(num_samples=50)(x, epsilons, keys=[0])
    >>> distance = (found.images - x).flatten(2).norm(dim=2)
    >>> [bool((distance[0, inside] < epsilon).all()) for inside, epsilon in zip(found.inside[0], epsilons)]
    [True, True]

    Args:
        num_samples: number of samples for each image and radius.

    Raises:
        SettingError: if there are none; on use, if images are outside [0, 1] or radii negative or not finite.
    """

    def __init__(self, num_samples: int = 100) -> None:
        require(num_samples >= 1, "num_samples", num_samples, "give at least 1")
        self.num_samples = num_samples

    def __call__(self, x: Tensor, epsilons: Tensor, keys: list[int]) -> Neighbours:
        """Uniform draws around ``x`` (B, C, H, W), N = E * num_samples: those of each of the radii (E,) in its ball."""
        check_images(x)
        fits = bool(((epsilons >= 0) & epsilons.isfinite()).all())
        require(fits, "epsilons", epsilons.tolist(), "give finite radii of at least 0")
        E, count = len(epsilons), len(epsilons) * self.num_samples
        images = torch.empty(len(x), count, *x.shape[1:], dtype=x.dtype)
        for image, own, key in zip(images, x.cpu(), keys, strict=True):
            delta = draw_from_cut_balls(own.flatten(), epsilons.cpu(), self.num_samples, generator(key, 0))
            image.copy_((own.double() + delta.view_as(image)).clamp(0.0, 1.0))
        index = torch.arange(count, device=x.device) // self.num_samples
        inside = index == torch.arange(E, device=x.device)[:, None]
        return Neighbours(images.to(x.device), inside.expand(len(x), -1, -1))


class OnManifold:
    """Q = P, the data's distribution near an image as an autoencoder has it: dec(enc(x) + sigma * N(0, 1)), eq. 13.

    Distances are to the image itself, so the reconstruction's error is part of them.

    Args:
        autoencoder: network with ``encode`` and ``decode``; it is frozen and put in evaluation mode. By default the
            autoencoder of the checkpoint.
        checkpoint: checkpoint of its training by ``WassersteinAutoencoder``; none if it is trained already.
        sigma: std of the noise on the codes.
        num_samples: number of samples for each image.

    Raises:
        SettingError: if a setting is out of its range or the checkpoint does not fit; on use, if neither autoencoder
            nor checkpoint is given.
    """

    def __init__(
        self,
        autoencoder: Autoencoder | None = None,
        checkpoint: str | None = None,
        sigma: float = 0.06,
        num_samples: int = 50,
    ) -> None:
        require(sigma > 0, "sigma", sigma, "give a positive std")
        require(num_samples >= 1, "num_samples", num_samples, "give at least 1")
        if autoencoder is None and checkpoint is not None:
            autoencoder = trained_autoencoder(checkpoint, "checkpoint")
        elif autoencoder is not None and checkpoint is not None:
            load_autoencoder(autoencoder, checkpoint, "checkpoint")
        self.autoencoder = None if autoencoder is None else autoencoder.requires_grad_(False).eval()
        self.sigma, self.num_samples = sigma, num_samples

    def __call__(self, x: Tensor, epsilons: Tensor, keys: list[int]) -> Neighbours:
        """Images decoded near the codes of ``x`` (B, C, H, W): the same N for all radii (E,)."""
        if self.autoencoder is None:
            raise SettingError("checkpoint", None, "give that of an autoencoder's training, or a trained autoencoder")
        autoencoder = self.autoencoder.to(x)
        with torch.no_grad():
            codes = autoencoder.encode(x)
            size = (self.num_samples, codes.shape[1])
            noise = torch.stack([torch.randn(size, generator=generator(key, 0), dtype=codes.dtype) for key in keys])
            codes = codes[:, None] + self.sigma * noise.to(x.device)
            images = autoencoder.decode(codes.flatten(0, 1)).clamp(0.0, 1.0)
        images = images.view(len(x), self.num_samples, *x.shape[1:])
        return Neighbours(images, _inside(x, images, epsilons), codes)


class FromData:
    """Q = P, by a fixed set of images drawn from P: those in the ball.

    >>> data = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)
    >>> FromData(data)(torch.zeros(1, 1, 1, 1), epsilons=torch.tensor([0.25, 0.75]), keys=[0]).inside
    tensor([[[ True, False, False],
             [ True,  True, False]]])

    Args:
        images: images drawn from P, (N, C, H, W) in [0, 1].
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __call__(self, x: Tensor, epsilons: Tensor, keys: list[int]) -> Neighbours:
        """The same N images for every ``x`` (B, C, H, W) and radius (E,); nothing is drawn."""
        images = self.images.to(x)
        distance = torch.cdist(x.flatten(1), images.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        inside = distance[:, None] < epsilons.to(x)[:, None]
        return Neighbours(images.expand(len(x), *images.shape), inside)


class NetworkLabels:
    """Labels by a trained network, which stand for the true ones of images that nobody has labelled.

    >>> NetworkLabels(nn.Flatten())(torch.tensor([0.25, 0.75]).view(1, 1, 1, 2))
    tensor([1])

    Args:
        network: network from images (N, C, H, W) to logits; it is frozen and put in evaluation mode.
        weights: file of its weights, as in ``model.weights``; none if it is trained already.

    Raises:
        SettingError: if the weights do not fit.
        NonFiniteLogitsError: on use, if logits are NaN or infinite.
    """

    def __init__(self, network: nn.Module, weights: str | None = None) -> None:
        if weights is not None:
            load_weights(network, weights, "weights")
        self.network = network.requires_grad_(False).eval()

    def __call__(self, x: Tensor) -> Tensor:
        """Classes (N,) of images (N, C, H, W)."""
        network = self.network.to(x)
        with torch.no_grad():
            logits = torch.cat([network(part) for part in torch.split(x, CHUNK_SIZE)])
        check_logits(logits, len(x))
        return logits.argmax(1)


class SameLabel:
    """Another sampler's distribution, given that the true label is that of the image: Y(X) = Y(x) (example 5).

    Args:
        sampler: sampler of the distribution that is conditioned.
        labelling: function from images (N, C, H, W) to true labels (N,), such as :class:`NetworkLabels`.
    """

    def __init__(self, sampler: Sampler, labelling: NetworkLabels | Labelling) -> None:
        self.sampler, self.labelling = sampler, labelling

    def __call__(self, x: Tensor, epsilons: Tensor, keys: list[int]) -> Neighbours:
        """The other sampler's images around ``x`` (B, C, H, W), of which those of another label count as outside."""
        neighbours = self.sampler(x, epsilons, keys)
        labels = self.labelling(neighbours.images.flatten(0, 1)).view(neighbours.images.shape[:2])
        same = labels == self.labelling(x)[:, None]
        return neighbours._replace(inside=neighbours.inside & same[:, None])


def _inside(x: Tensor, images: Tensor, epsilons: Tensor) -> Tensor:
    """Whether each of the images (B, N, C, H, W) is in the open balls around ``x``, bool (B, E, N)."""
    distance: Tensor = torch.linalg.vector_norm((images - x[:, None]).flatten(2), dim=2)
    return distance[:, None] < epsilons.to(x)[:, None]
