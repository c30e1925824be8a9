"""Square attack: random search that needs no gradients (Andriushchenko et al. 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from robust.attacks._checked import attacking, judge
from robust.attacks._square_moves import moves_in
from robust.errors import require
from robust.losses import margin
from robust.modes import MODES, Mode
from robust.progress import tracked
from robust.random import part
from robust.threat_models import ThreatModel

# Queries after which the squares' area is halved once more (ibid., Sec. 4.2).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Square:
    """Moves random squares of each image to an end of the threat model and keeps what raises the margin.

    In linf balls and per-pixel boxes a square goes to an end of its pixels' budgets; in l2 and l1 balls
    (Andriushchenko et al. 2020, algorithm 3; Croce & Hein 2021) the perturbation of one window goes into another one.
    Where it breaks examples that gradient attacks do not, the network masks its gradients.

    Args:
        queries: perturbed images that are tried for each example at most, each in ``num_samples`` passes; those that
            are misclassified are left out of the rest, unless the network has noise. The example itself is tried first.
        first_area: fraction of the image that the first squares cover.
        num_samples: losses are means over so many passes, for networks that draw random numbers (EOT).
        mode: the network's mode meanwhile; see :class:`robust.attacks.PGD`.

    Raises:
        SettingError: if a setting is out of its range; on use, if the threat model is neither a box nor an l2 or l1
            ball.
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
            threat_model: linf ball, per-pixel box, l2 or l1 ball.
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,).
        """
        with attacking(network, self.mode, x, y, self.num_samples) as (checked, x, y):
            moves = moves_in(threat_model, x)
            best = x.clone()
            loss, wrong = judge(checked, margin, x, y, self.num_samples)
            remaining = (~wrong).nonzero().squeeze(1)
            start = moves.start(x)
            for query in tracked(range(self.queries)):
                if len(remaining) == 0:
                    break
                images = x[remaining]
                with part(remaining):
                    tried = (
                        start[remaining]
                        if query == 0
                        else moves.move(images, best[remaining], remaining, self._area(query))
                    )
                    value, wrong = judge(checked, margin, tried, y[remaining], self.num_samples)
                better = (value > loss[remaining]) | wrong
                chosen = remaining[better]
                best[chosen], loss[chosen] = tried[better], value[better]
                remaining = remaining[~wrong]
            return best

    def _area(self, query: int) -> float:
        """Fraction of the image that the squares of a query cover."""
        return self.first_area * 0.5 ** sum(query > halving for halving in _HALVINGS)
