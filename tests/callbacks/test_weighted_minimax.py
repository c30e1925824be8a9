"""Weighted minimax metrics equal a plain computation."""

import pytest
import torch
import torch.nn.functional as F

from callbacks import GradientMaskingChecks, WeightedMinimaxEvaluation
from datamodules import Digits
from robust.errors import SettingError
from robust.random import numbered, part, rand_like
from robust.threat_models import L2Ball
from tests.callbacks.trained import Plain, images, trainer_with


def strongest(network, x, y, alpha, steps, step_size, epsilon, restarts):
    """PGD on exp(-alpha * margin) * CE, as a plain loop."""

    def loss_and_wrong(x):
        logits = network(x)
        p = logits.softmax(1)
        others = p.masked_fill(F.one_hot(y, 10).bool(), 0).amax(1)
        loss = torch.exp(-alpha * (p[range(len(y)), y] - others)) * F.cross_entropy(logits, y, reduction="none")
        return loss, logits.argmax(1) != y

    best, (best_loss, broken) = x, loss_and_wrong(x)
    for _ in range(restarts):
        low, high = (x - epsilon).clamp(min=0), (x + epsilon).clamp(max=1)
        with part(), part():  # of the restart, and of its ascent
            z = low + (high - low) * rand_like(x)
        for _ in range(steps):
            z = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss_and_wrong(z)[0].sum(), z)
            z = (z + step_size * gradient.sign()).clamp(x - epsilon, x + epsilon).clamp(0, 1).detach()
        loss, wrong = loss_and_wrong(z)
        better = (wrong & ~broken) | ((wrong == broken) & (loss > best_loss))
        best = torch.where(better[:, None, None, None], z, best)
        best_loss, broken = torch.where(better, loss, best_loss), torch.where(better, wrong, broken)
    return best.detach()


@pytest.mark.parametrize("inference_mode", [True, False])
def test_metrics_equal_a_plain_computation(trained, inference_mode):
    settings = {"steps": 4, "step_size": 0.01, "epsilon": 0.03, "restarts": 2}
    x, y = images()
    expected = {"test/accuracy/clean": (trained(x).argmax(1) == y).float().mean().item()}
    expected["test/weighted_accuracy/samples"] = 299
    for attack_alpha in (0.0, 1.0, 2.0):
        with numbered((7,), range(299)), part():
            p = trained(strongest(trained, x, y, attack_alpha, **settings)).softmax(1).double()
        label = p[range(299), y]
        margins = label - p.masked_fill(F.one_hot(y, 10).bool(), 0).amax(1)
        for alpha in (1.0, 2.0) if attack_alpha == 0 else (attack_alpha,):
            weights = (-alpha * margins).exp()
            kind = "a_sa" if attack_alpha == 0 else "a_tr"
            name = f"test/weighted_accuracy/{kind}/linf_0.03/alpha_{alpha:g}"
            expected[name] = (weights[margins > 0].sum() / weights.sum()).item()
            expected[f"{name}/effective_samples"] = (weights.sum() ** 2 / (weights**2).sum()).item()
        if attack_alpha == 0:
            expected["test/accuracy/a_rob/linf_0.03"] = (margins > 0).float().mean().item()

    evaluation = WeightedMinimaxEvaluation(alphas=(1.0, 2.0), seed=7, **settings)
    trainer = trainer_with(evaluation, inference_mode=inference_mode)
    measured = trainer.test(trained, Digits(eval_batch_size=299), verbose=False)[0]
    assert measured == pytest.approx(expected, rel=1e-5)
    weighted, robust = "test/weighted_accuracy/a_sa/linf_0.03", measured["test/accuracy/a_rob/linf_0.03"]
    assert measured[f"{weighted}/alpha_2"] < measured[f"{weighted}/alpha_1"] < robust < measured["test/accuracy/clean"]


def test_alpha_0_gives_equal_weights_and_the_radius_is_the_modules_by_default(trained):
    metrics = {}
    for epsilon in (None, trained.epsilon, 0.5 * trained.epsilon):
        evaluation = WeightedMinimaxEvaluation(3, 0.02, epsilon, restarts=1, alphas=(0.0,))
        metrics[epsilon] = trainer_with(evaluation).test(trained, Digits(eval_batch_size=100), verbose=False)[0]
    robust = []
    for values, ball in zip(metrics.values(), ("linf_0.05", "linf_0.05", "linf_0.025"), strict=True):
        a_sa, a_tr = (f"test/weighted_accuracy/{kind}/{ball}/alpha_0" for kind in ("a_sa", "a_tr"))
        robust.append(values[f"test/accuracy/a_rob/{ball}"])
        assert values[a_tr] == values[a_sa] == pytest.approx(robust[-1])
        assert values[f"{a_sa}/effective_samples"] == values["test/weighted_accuracy/samples"] == 299
    assert metrics[None] == metrics[trained.epsilon]
    assert robust[0] < robust[2]


@pytest.mark.parametrize("kind", [WeightedMinimaxEvaluation, GradientMaskingChecks])
def test_the_radius_of_another_norm_is_not_taken(trained, kind):
    class InL2(Plain):
        def threat_models(self, x, epsilon):
            return {"l2": L2Ball(epsilon)}

    callback = kind(**({"steps": 1, "step_size": 0.1} if kind is WeightedMinimaxEvaluation else {}))
    remedy = (
        f"^{kind.__name__}.epsilons?: got None; give a radius: none of the model's threat models, l2, is a linf ball"
    )
    with pytest.raises(SettingError, match=remedy):
        trainer_with(callback).test(InL2(trained.classifier, epsilon=0.5), Digits(), verbose=False)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("steps", 0), ("step_size", 0.0), ("epsilon", 0.0), ("restarts", 0), ("alphas", (-1.0,)), ("alphas", (1.0, 1.0))],
)
def test_wrong_settings(setting, value):
    with pytest.raises(SettingError, match=f"^WeightedMinimaxEvaluation.{setting}: got"):
        WeightedMinimaxEvaluation(**({"steps": 1, "step_size": 0.1} | {setting: value}))
