"""Accuracy under attack with larger weights for vulnerable examples, on any number of processes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torchmetrics import SumMetric

from callbacks.evaluation.attack_settings import Ball, norm_ball
from callbacks.evaluation.base import Evaluation
from callbacks.evaluation.saved_rows import Rows
from lightning_modules.base import RobustClassifier
from robust.attacks import PGD
from robust.errors import require
from robust.evaluation import checked_attack
from robust.losses import Loss, cross_entropy, probability_margin, vulnerability_weight
from robust.metric_names.registry import threat_model_name
from robust.metrics import Accuracy, WeightedAccuracy
from robust.progress import advance, loop

LARGEST_ALPHA = 300.0  # squared weights of margins in [-1, 1] are then sums of finite numbers in float64


class WeightedMinimaxEvaluation(Evaluation):
    """The weighted minimax risk's metrics on the test data, under PGD in linf.

    Logged, as fractions in [0, 1]:

    - ``test/accuracy/a_rob/linf_<epsilon>``: A_rob, accuracy under PGD on the cross-entropy
    - ``test/weighted_accuracy/a_sa/linf_<epsilon>/alpha_<alpha>``: A_sa, the same images, with weights
      exp(-alpha * margin) of the attacked images
    - ``test/weighted_accuracy/a_tr/linf_<epsilon>/alpha_<alpha>``: A_tr, images of PGD on the weighted cross-entropy,
      with the same weights
    - ``.../effective_samples`` of each weighted accuracy: effective sample size of the weights s,
      (sum s)^2 / sum s^2
    - ``test/weighted_accuracy/samples``: number of examples

    A_nat, the clean accuracy, is ``test/accuracy/clean``, as for every classifier.

    All examples are attacked, even if they are misclassified without perturbation: their weights count too. Each
    restart begins at a new uniform point of the ball, the same for all alphas. The result is the image of highest loss
    among the restarts and the unperturbed image; a misclassified image comes before every correct one. The loss is the
    one that the attack ascends, for ``a_tr`` the weighted loss; the published code compares cross-entropies. The
    gradient flows through the weight, as in that code. Networks with noise are evaluated in one pass.

    Source: weighted minimax risk (WMR), evaluation metrics; protocol of the published code: MNIST 40 steps of 0.01 in
    0.3, CIFAR-10 20 steps of 0.0031 in 0.031, 10 restarts.

    Args:
        steps: number of steps of PGD.
        step_size: step size in pixel units.
        epsilon: radius of the ball in (0, 1]; by default the radius of the module's linf ball.
        restarts: number of random starts for each example.
        alphas: strengths of the weights, from 0 to 300.
        seed: seed of the random starts.

    Raises:
        SettingError: if a setting is out of its range.
    """

    stages = ("test",)

    def __init__(
        self,
        steps: int,
        step_size: float,
        epsilon: float | None = None,
        restarts: int = 10,
        alphas: tuple[float, ...] = (1.0, 1.5, 2.0),
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        name = "WeightedMinimaxEvaluation"
        for setting, count in (("steps", steps), ("restarts", restarts)):
            require(count >= 1, f"{name}.{setting}", count, "give at least 1")
        fits = 0 < step_size < float("inf")
        require(fits, f"{name}.step_size", step_size, "give a positive, finite size, in pixel units")
        require(epsilon is None or 0 < epsilon <= 1, f"{name}.epsilon", epsilon, "give a radius in (0, 1]")
        fits = len({f"{alpha:g}" for alpha in alphas}) == len(alphas) > 0
        require(fits, f"{name}.alphas", alphas, "give at least one, with different names in six digits")
        for alpha in alphas:
            remedy = f"give strengths from 0 to {LARGEST_ALPHA:g}: larger weights overflow"
            require(0 <= alpha <= LARGEST_ALPHA, f"{name}.alphas", alpha, remedy)
        self.epsilon = epsilon
        self.alphas = list(alphas)
        self.attack = PGD(steps, step_size, absolute=True, restarts=restarts)

    def try_out(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Check that there is a ball."""
        self._ball(module, x)

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:  # noqa: D102
        with self.seeded(x):
            clean = module(x)
        with loop(1 + len(self.alphas)):
            self._attack_all(module, x, y, clean)
        self.update("weighted_accuracy/samples", SumMetric, torch.tensor(len(x), device=x.device))

    def _attack_all(self, module: RobustClassifier, x: Tensor, y: Tensor, clean: Tensor) -> None:
        """Update the metrics of each attack."""
        ball = self._ball(module, x)
        name = threat_model_name("linf", ball.epsilon)
        margins, correct = self._attack(module, "cross_entropy", cross_entropy, x, y, clean)
        self.note_misclassified(module, ball, ~correct, "WeightedMinimaxEvaluation's attack")
        self.update(f"accuracy/a_rob/{name}", Accuracy, correct)
        self.update(f"weighted_accuracy/a_sa/{name}", partial(WeightedAccuracy, self.alphas), margins, correct)
        for alpha in self.alphas:
            weighted = partial(_weighted, alpha=alpha)
            margins, correct = self._attack(module, f"weighted_{alpha:g}", weighted, x, y, clean)
            self.update(
                f"weighted_accuracy/a_tr/{name}/{alpha:g}", partial(WeightedAccuracy, [alpha]), margins, correct
            )

    def _ball(self, module: RobustClassifier, x: Tensor) -> Ball:
        return norm_ball("WeightedMinimaxEvaluation.epsilon", "linf", self.epsilon, module, x)

    def _attack(
        self, module: RobustClassifier, name: str, loss: Loss, x: Tensor, y: Tensor, clean: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Probability margins (B,) of the attacked images, and whether they are correct, bool (B,)."""

        def compute() -> Rows:
            with self.seeded(x):
                attack = partial(self.attack, loss=loss)
                x_adv = checked_attack("WeightedMinimaxEvaluation", attack, module, self._ball(module, x), x, y)
                logits = module(x_adv)
            if not module.stochastic:  # an image that is misclassified without perturbation stays misclassified
                repaired = (logits.argmax(1) == y) & (clean.argmax(1) != y)
                logits = torch.where(repaired[:, None], clean, logits)
            return {"margin": probability_margin(logits.double(), y), "correct": logits.double().argmax(1) == y}

        judged = self.saved(module, name, [self.attack, self._ball(module, x).epsilon], (x, y), compute)
        advance()
        return judged["margin"], judged["correct"]

    def compute(self, module: RobustClassifier) -> dict[str, Tensor]:
        """The metrics; weighted metrics once for each alpha."""
        values: dict[str, Tensor] = {}
        for name, metric in self.metrics.items():
            value = metric.compute()
            if not isinstance(metric, WeightedAccuracy):
                values[name] = value
                continue
            for index, alpha in enumerate(metric.alphas):
                full_name = "/".join([*name.split("/")[:3], f"alpha_{alpha:g}"])
                values[full_name] = value["accuracy"].reshape(-1)[index]  # torchmetrics squeezes single entries
                values[f"{full_name}/effective_samples"] = value["effective_samples"].reshape(-1)[index]
        return values


def _weighted(logits: Tensor, y: Tensor, alpha: float) -> Tensor:
    """The example's weight times its cross-entropy, (B,)."""
    return vulnerability_weight(logits, y, alpha) * cross_entropy(logits, y)
