"""Square attack: random search that needs no gradients (Andriushchenko et al. 2020; in l1 Croce & Hein 2021)."""

from __future__ import annotations

from torch import Tensor, nn

from robust.attacks._checked import attacking, judge
from robust.attacks._square_moves import area_of, moves
from robust.errors import require
from robust.losses import margin
from robust.modes import MODES, Mode
from robust.progress import tracked
from robust.random import part
from robust.threat_models import ThreatModel


class Square:
    """Changes random squares of each image and keeps what raises the margin.

    In linf balls and per-pixel boxes their pixels go to an end of their budgets; in l2 and l1 balls a square takes over
    the part of the radius that another one gives up. Where it breaks examples that gradient attacks do not, the network
    masks its gradients.

    Args:
        queries: passes of each example at most; those that are misclassified are left out of the rest.
        first_area: fraction of the image that the first squares cover.
        num_samples: loss and verdict are taken over so many passes, for networks that draw random numbers (EOT).
        mode: the network's mode meanwhile; see :class:`robust.attacks.PGD`.

    Raises:
        SettingError: if a setting is out of its range.
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
            threat_model: any.
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,).
        """
        with attacking(network, self.mode, x, y) as (checked, x, y):
            best = x.clone()
            loss, wrong = judge(checked, margin, x, y, self.num_samples)
            remaining = (~wrong).nonzero().squeeze(1)
            proposals = moves(threat_model, x)
            for query in tracked(range(self.queries)):
                if len(remaining) == 0:
                    break
                images, proposal = x[remaining], proposals.select(remaining)
                with part(remaining):
                    if query == 0:
                        tried = proposal.start(images)
                    else:
                        tried = proposal.move(images, best[remaining], area_of(query, self.first_area))
                    value, wrong = judge(checked, margin, tried, y[remaining], self.num_samples)
                better = (value > loss[remaining]) | wrong
                chosen = remaining[better]
                best[chosen], loss[chosen] = tried[better], value[better]
                remaining = remaining[~wrong]
            return best
