"""Square attack: random search that needs no gradients (Andriushchenko et al. 2020), for boxes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robust.attacks._checked import attacking, judge
from robust.errors import require
from robust.losses import margin
from robust.modes import MODES, Mode
from robust.progress import tracked
from robust.random import part, rand
from robust.threat_models import PixelBox, ThreatModel

# Queries after which the squares' area is halved once more (ibid., Sec. 4.2).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Square:
    """Moves random squares of each image to an end of their pixels' budgets and keeps what raises the margin.

    For linf balls and per-pixel boxes. Where it breaks examples that gradient attacks do not, the network masks its
    gradients.

    Args:
        queries: passes of each example at most; those that are misclassified are left out of the rest.
        first_area: fraction of the image that the first squares cover.
        num_samples: loss and verdict are taken over so many passes, for networks that draw random numbers (EOT).
        mode: the network's mode meanwhile; see :class:`robust.attacks.PGD`.

    Raises:
        SettingError: if a setting is out of its range; on use, if the threat model is not a box.
    """

    def __init__(self, queries: int = 5000, first_area: float = 0.8, num_samples: int = 1, mode: Mode = "eval") -> None:
        require(queries >= 1, "queries", queries, "give at least 1")
        require(0 < first_area <= 1, "first_area", first_area, "give a fraction of the image in (0, 1]")
        require(num_samples >= 1, "num_samples", num_samples, "give at least 1")
        require(mode in MODES, "mode", mode, f"give one of {', '.join(MODES)}")
        self.queries = queries
        self.first_area = first_area
        self.num_samples = num_samples
        self.mode: Mode = mode

    def __call__(self, network: nn.Module, threat_model: ThreatModel, x: Tensor, y: Tensor) -> Tensor:
        """A misclassified image if one was found, else that of highest margin; (B, C, H, W).

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K).
            threat_model: linf ball or per-pixel box.
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,).
        """
        kind = type(threat_model).__name__
        require(threat_model.is_box, "threat_model", kind, "take APGD: Square searches boxes only")
        with attacking(network, self.mode, x, y) as (checked, x, y):
            best = x.clone()
            loss, wrong = judge(checked, margin, x, y, self.num_samples)
            remaining = (~wrong).nonzero().squeeze(1)
            budgets = torch.as_tensor(threat_model.radius).to(x).expand_as(x)
            stripes = _signs(x[:, :, :1, :])
            for query in tracked(range(self.queries)):
                if len(remaining) == 0:
                    break
                images, ends = x[remaining], budgets[remaining]
                with part(remaining):
                    if query == 0:
                        moved = images + stripes[remaining] * ends
                    else:
                        moved = torch.where(
                            self._squares(images, query), images + _signs(images) * ends, best[remaining]
                        )
                    tried = PixelBox(ends).project(moved, images)
                    value, wrong = judge(checked, margin, tried, y[remaining], self.num_samples)
                better = (value > loss[remaining]) | wrong
                chosen = remaining[better]
                best[chosen], loss[chosen] = tried[better], value[better]
                remaining = remaining[~wrong]
            return best

    def _squares(self, x: Tensor, query: int) -> Tensor:
        """Mask (B, 1, H, W) of a square at a random place in each image."""
        batch, _, height, width = x.shape
        area = self.first_area * 0.5 ** sum(query > halving for halving in _HALVINGS)
        side = max(round((area * height * width) ** 0.5), 1)
        side = min(side, height, width)

        def inside(size: int) -> Tensor:
            first = (rand((batch, 1), x) * (size - side + 1)).long()
            indices = torch.arange(size, device=x.device)
            mask: Tensor = (indices >= first) & (indices < first + side)
            return mask

        return inside(height)[:, None, :, None] & inside(width)[:, None, None, :]


def _signs(x: Tensor) -> Tensor:
    """-1 or 1 for each example and channel, and each column if there is but one row."""
    shape = x.shape if x.shape[2] == 1 else (*x.shape[:2], 1, 1)
    return torch.where(rand(shape, x) < 0.5, -1.0, 1.0).to(x.dtype)
