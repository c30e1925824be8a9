"""Attack along the data manifold: on the codes of a decoder (Stutz, Hein, Schiele 2019)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robust.attacks._checked import Checked
from robust.checks import check_label_shape, check_precision
from robust.errors import require
from robust.losses import cross_entropy
from robust.modes import attack_mode
from robust.random import part, rand_like


class LatentAttack:
    """Adam on codes, within an linf ball around them and a range: ascends the cross-entropy of the decoded image.

    The source projects onto ball and range in turns; both are boxes, and one step onto their intersection does the
    same. Source: Stutz, Hein, Schiele 2019, Sec. 3.3, with the authors' settings for training.

    Args:
        epsilon: radius of the ball; the source has 0.1 for one manifold of all classes.
        steps: number of Adam steps, from a random start.
        learning_rate: learning rate of Adam.

    Raises:
        SettingError: if a setting is out of its range.
    """

    def __init__(self, epsilon: float = 0.1, steps: int = 40, learning_rate: float = 0.005) -> None:
        require(epsilon > 0, "epsilon", epsilon, "give a positive radius, in units of the codes")
        require(steps >= 1, "steps", steps, "give at least 1")
        require(learning_rate > 0, "learning_rate", learning_rate, "give a positive rate")
        self.epsilon, self.steps, self.learning_rate = epsilon, steps, learning_rate

    def __call__(
        self,
        network: nn.Module,
        decode: Callable[[Tensor], Tensor],
        codes: Tensor,
        y: Tensor,
        low: Tensor,
        high: Tensor,
    ) -> Tensor:
        """Codes (B, Z) found: the last iterate.

        Args:
            network: classifier, (B, C, H, W) -> logits (B, K), taken in evaluation mode.
            decode: codes (B, Z) to images.
            codes: centers of the balls, (B, Z).
            y: labels (B,).
            low: lower end of the codes' range, (Z,); ``codes`` are inside.
            high: upper end of that range, (Z,).

        Raises:
            SettingError: if codes, range, labels, logits or weights are not as said.
            NonFiniteLogitsError: if logits are NaN or infinite.
            GradientError: if gradients are, or the first is zero for all examples.
        """
        _check_codes(codes, low, high)
        check_precision(network)
        check_label_shape(y, len(codes))
        low, high = torch.maximum(low, codes - self.epsilon), torch.minimum(high, codes + self.epsilon)
        with attack_mode(network, "eval"), part():
            checked = Checked(network, y := y.to(torch.int64, copy=True))
            z = self.start(codes).clamp(low, high).requires_grad_()
            adam = torch.optim.Adam([z], lr=self.learning_rate, maximize=True)
            for _ in range(self.steps):
                with torch.enable_grad():
                    loss = cross_entropy(checked(decode(z)), y).sum()
                    z.grad = checked.gradient(loss, z, lambda at: network(decode(at)))
                adam.step()
                z.copy_(z.clamp(low, high))
            checked.finish()
            return z.detach()

    def start(self, codes: Tensor) -> Tensor:
        """Uniform in the ball around ``codes`` (B, Z)."""
        return codes + self.epsilon * (2 * rand_like(codes) - 1)


def _check_codes(codes: Tensor, low: Tensor, high: Tensor) -> None:
    for name, value, dims in (("codes", codes, 2), ("low", low, 1), ("high", high, 1)):
        shape = value.dim() == dims and value.numel() > 0 and value.shape[-1] == codes.shape[-1]
        require(shape, name, tuple(value.shape), "give at least one code (B, Z), and a range of (Z,)")
        bad = int((~value.isfinite()).sum())
        require(bad == 0, name, f"{bad} values that are NaN or infinite", "give finite ones: the encoder has diverged")
    outside = int(((codes < low) | (codes > high)).any(1).sum())
    require(outside == 0, "codes", f"{outside} codes outside their range", "give a range that holds all codes")
