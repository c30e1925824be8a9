"""You Only Propagate Once: Accelerating Adversarial Training via Maximal Principle (Zhang, Zhang, Lu, Zhu, Dong 2019).

| symbol | here | what |
| --- | --- | --- |
| m, n | ``outer``, ``inner`` | full passes of a batch; steps through the first layer after each pass |
| f_0 | ``first_layer`` | the layer through which the inner steps propagate gradients |
| p | ``costate`` | gradient of the loss with respect to that layer's output, constant in the inner steps |

The authors' code adds up the weight gradients of the passes, so that its rate of 0.2 / m is one of 0.2 here. It also
adds the inner steps' gradient of the Hamiltonian to the first layer's weights, which is left out here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import Batch, RobustClassifier, blank_images
from robust.convolution import fast_image_gradients
from robust.errors import require
from robust.modes import in_mode
from robust.passes import uncounted
from robust.threat_models import LinfBall


class _FirstLayerDone(Exception):  # noqa: N818 - no error
    """Ends a forward pass after the first layer."""


class YOPO(RobustClassifier):
    """YOPO-m-n: each of m full passes gives weight gradients and the costate of n steps through the first layer.

    The threat model is the linf ball. Source: Algorithm 1.

    Args:
        classifier: network from images (B, C, H, W) to logits (B, K).
        first_layer: name of the classifier's first layer, as ``named_modules`` gives it.
        outer: number of full passes over a batch, of whose weight gradients the mean is taken; at least 1.
        inner: number of steps of the perturbation after each full pass; at least 1.
        step_size: size of an inner step, as a fraction of epsilon.
        **settings: settings of :class:`RobustClassifier`.

    Raises:
        SettingError: if a setting is out of its range, or the classifier has no layer of that name.
    """

    def __init__(
        self,
        classifier: nn.Module,
        first_layer: str,
        *,
        outer: int = 5,
        inner: int = 3,
        step_size: float = 0.25,
        **settings: Any,
    ) -> None:
        require(outer >= 1, "model.outer", outer, "give at least 1")
        require(inner >= 1, "model.inner", inner, "give at least 1")
        require(step_size > 0, "model.step_size", step_size, "give a positive fraction of epsilon")
        names = [name for name, _ in classifier.named_modules() if name]
        require(first_layer in names, "model.first_layer", first_layer, f"give one of {', '.join(names)}")
        super().__init__(classifier, **settings)
        self.first_layer, self.outer, self.inner, self.step_size = first_layer, outer, inner, step_size

    def check_shapes(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Check the network, and that it runs its first layer."""
        super().check_shapes(image_shape, num_classes)
        with torch.no_grad(), in_mode(self.classifier, "eval"), uncounted():
            self._first_layer_output(blank_images(self.classifier, 2, image_shape))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Algorithm 1: each full pass gives the costate of the next ``inner`` steps of the perturbation."""
        x, y = batch
        ball = LinfBall(self.current_epsilon)
        step = self.step_size * self.current_epsilon
        x_adv, losses = self.start(ball, x), []
        optimizer = self.all_optimizers()[0]
        optimizer.zero_grad()
        for _ in range(self.outer):
            hidden, logits = self._full_pass(x_adv)
            loss = F.cross_entropy(logits, y) / self.outer
            self.check_loss(loss)
            self.manual_backward(loss)
            losses.append(loss.detach())
            if len(losses) == self.outer:
                break  # no further pass would use a new perturbation
            costate = hidden.grad
            assert costate is not None
            for _ in range(self.inner):
                x_adv = x_adv.detach().requires_grad_()
                hamiltonian = (costate * self._first_layer_output(x_adv)).sum()
                (gradient,) = torch.autograd.grad(hamiltonian, x_adv)
                x_adv = ball.project(x_adv.detach() + step * gradient.sign(), x)
        self.step(optimizer)
        self.log("train/loss", torch.stack(losses).sum(), prog_bar=True, sync_dist=True)

    def start(self, ball: LinfBall, x: Tensor) -> Tensor:
        """First perturbed images of a batch, drawn from the ball."""
        return ball.sample(x)

    def _full_pass(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first layer's output, which retains its gradient, and the logits."""
        outputs: list[Tensor] = []

        def record(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:  # the output of a layer without weights, such as Normalize
                output.requires_grad_()
            output.retain_grad()
            outputs.append(output)
            return output.clone()  # the next layer may change it in place

        handle = self.classifier.get_submodule(self.first_layer).register_forward_hook(record)
        try:
            logits = self.classifier(x)
        finally:
            handle.remove()
        return outputs[0], logits

    def _first_layer_output(self, x: Tensor) -> Tensor:
        """The first layer's output; the layers after it do not run."""
        outputs: list[Tensor] = []

        def stop(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs.append(output)
            raise _FirstLayerDone

        handle = self.classifier.get_submodule(self.first_layer).register_forward_hook(stop)
        try:
            with fast_image_gradients(self.classifier):
                self.classifier(x)
        except _FirstLayerDone:
            pass
        finally:
            handle.remove()
        remedy = f"{type(self.classifier).__name__} does not run it; give the first layer that it runs"
        require(len(outputs) > 0, "model.first_layer", self.first_layer, remedy)
        return outputs[0]
