"""Base of the classifiers: threat models and clean evaluation."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_modules.base.blank_runs import (
    check_double,
    check_registered,
    check_repeatable,
    check_training_mode,
    run_blank,
    warn_of_probabilities,
)
from lightning_modules.base.checks import images_of
from lightning_modules.base.descent import OptimizerSpec
from lightning_modules.base.training_module import Batch, TrainingModule
from robust.bounds import Verifier, choose_verifier
from robust.bounds.verifier import full_precision
from robust.checkpoints import load_weights
from robust.checks import check_labels, check_logits
from robust.errors import NonFiniteLogitsError, UnsupportedLayerError, require
from robust.metric_names.registry import threat_model_name
from robust.metrics import Accuracy
from robust.networks import noise_sources
from robust.threat_models import LinfBall, ThreatModel


class RobustClassifier(TrainingModule):
    """A classifier that is trained to be correct in a threat model.

    Subclasses add the threat models that they learn to :meth:`threat_models`. Images are float tensors (B, C, H, W) in
    [0, 1].

    Args:
        classifier: network from images to logits (B, K) that normalises its input itself.
        epsilon: size of the threat model in pixel units.
        weights: path of the classifier's initial weights: a ``.safetensors`` file, or a ``.pth`` file of tensors.
        **settings: settings of :class:`Descent`; ``optimizer`` updates the classifier.

    Attributes:
        largest_epsilon: largest allowed ``epsilon``: 1 in linf, infinity in other norms.
        ramp: fraction of ``epsilon`` in training, in [0, 1]; the epsilon schedule sets it before each batch.
        ramped: whether the training uses ``ramp``; if not, only a constant schedule is accepted.
        needs_ramp: whether a setting would have no effect with a constant schedule, which is then refused.

    Raises:
        SettingError: if ``epsilon`` is outside (0, largest_epsilon], or the weights do not fit the classifier.
    """

    largest_epsilon: float = 1.0
    ramped: bool = True
    needs_ramp: bool = False

    def __init__(
        self, classifier: nn.Module, epsilon: float = 8 / 255, *, weights: str | None = None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        remedy = f"give a size in (0, {self.largest_epsilon:g}], in pixel units"
        require(0 < epsilon <= self.largest_epsilon, "model.epsilon", epsilon, remedy)
        if weights is not None:
            load_weights(classifier, weights, "model.weights")
        self.classifier = classifier
        self.epsilon = epsilon
        self.ramp = 1.0
        self._num_logits: int | None = None  # the first check of the classifier on the data sets both
        self._image_shape: tuple[int, int, int] | None = None
        self.clean_accuracy = nn.ModuleDict({stage: Accuracy() for stage in ("val", "test")})

    def optimizer_specs(self) -> list[OptimizerSpec]:
        """One entry: ``optimizer`` updates the classifier's parameters."""
        return [OptimizerSpec(self.classifier.parameters(), self.optimizer, self.lr_scheduler)]

    @property
    def current_epsilon(self) -> float:
        """Size of the threat model in training, in pixel units."""
        return self.ramp * self.epsilon

    @cached_property
    def verifier(self) -> Verifier:
        """Verifier of certified evaluations, chosen by the classifier's operations; some methods have a setting for it.

        Raises:
            SettingError: if the shape of the images is not known, since there was no data module and no batch yet.
            UnsupportedLayerError: if neither verifier bounds the classifier.
        """
        remedy = "the shape of the images is not known yet; give a verifier"
        require(self._image_shape is not None, "model.verifier", "auto", remedy)
        assert self._image_shape is not None
        try:
            choice = choose_verifier(self.classifier, self._image_shape)
        except UnsupportedLayerError as error:
            reason = str(error).partition("; ")[2]
            given = "verifier" in self.constructor_settings["init_args"]  # else it is that of an evaluation
            name = "model.verifier" if given else "verifier"
            raise UnsupportedLayerError(name, "auto", f"{type(self.classifier).__name__}: {reason}") from None
        rank_zero_info(f"Verifier: {choice}")
        return choice.verifier

    @property
    def stochastic(self) -> bool:
        """Whether the classifier's noise is enabled, so that two passes of an image differ in evaluation mode.

        Evaluations then classify each image in several passes.
        """
        return any(source.enabled for source in noise_sources(self.classifier))

    @property
    def delays(self) -> dict[str, int]:
        """Number of epochs before parts of the method start, by their settings."""
        return {}

    def on_train_start(self) -> None:
        """Warn if the training ends before a part of the method starts."""
        super().on_train_start()
        most = self.trainer.max_epochs
        for setting, epochs in self.delays.items():
            if most is not None and 0 < most <= epochs:
                remedy = "that part of the method never starts; give fewer epochs before it, or a longer training"
                rank_zero_warn(f"model.{setting}: got {epochs}; with trainer.max_epochs {most} {remedy}")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        logits: Tensor = self.classifier(x)
        return logits

    def require_own_forward(self, setting: str) -> None:
        """Check that the module's predictions are those of ``classifier``, of which bounds and exports are.

        Raises:
            SettingError: if a subclass overrides :meth:`forward`; the message names ``setting``.
        """
        remedy = "its forward is not that of model.classifier, which is bounded and exported; move it into that network"
        require(type(self).forward is RobustClassifier.forward, setting, type(self).__name__, remedy)

    def threat_models(self, x: Tensor, epsilon: float) -> dict[str, ThreatModel]:
        """Threat models of size ``epsilon`` around ``x`` that evaluations use, by their names in metrics."""
        return {threat_model_name("linf", epsilon): LinfBall(epsilon)}

    # -- evaluation ----------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Clean accuracy on validation data."""
        self._evaluate(batch, "val", f"validation batch {batch_idx}")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Clean accuracy on test data."""
        self._evaluate(batch, "test", f"test batch {batch_idx}")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Logits (B, K) and predicted classes (B,) of images (B, C, H, W), alone or with labels."""
        name = f"predict batch {batch_idx}"
        logits = self._checked_logits(images_of(batch, name), name)
        return {"logits": logits, "prediction": logits.argmax(1)}

    def _checked_logits(self, x: Tensor, name: str) -> Tensor:
        with full_precision(x.device):  # as the other evaluations, whose verdicts are compared with these
            logits: Tensor = self(x)
        try:
            check_logits(logits, len(x))
        except NonFiniteLogitsError as error:
            raise NonFiniteLogitsError(f"{name}, {error}") from None
        return logits

    def _evaluate(self, batch: Batch, stage: str, name: str) -> None:
        x, y = batch
        metric = self.clean_accuracy[stage]
        assert isinstance(metric, Accuracy)
        metric.update(self._checked_logits(x, name).argmax(1) == y)
        self.log(f"{stage}/accuracy/clean", metric, on_step=False, on_epoch=True, batch_size=len(x), prog_bar=True)

    # -- checks of inputs ----------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Reset what an earlier run may have left: the number of logits, and verdicts in the metrics."""
        self._num_logits = None
        for metric in self.clean_accuracy.values():
            assert isinstance(metric, Accuracy)
            metric.reset()
        super().setup(stage)

    def check_batch(self, x: Tensor, y: Tensor | None, name: str) -> None:
        """Check the images, and that the labels are classes of the network."""
        super().check_batch(x, y, name)
        shape = (x.shape[1], x.shape[2], x.shape[3])
        self.note_image_shape(shape)
        if y is None:
            return
        require(y.dtype == torch.int64, f"labels of {name}", str(y.dtype), "give int64 classes: labels.long()")
        if self._num_logits is None:  # without a data module, check_shapes has not run
            with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
                logits = run_blank("model.classifier", self.classifier, shape)
            remedy = "give a network from images to logits (B, K)"
            require(logits.dim() == 2, "model.classifier", f"output {tuple(logits.shape)} of 2 images", remedy)
            if x.dtype != torch.float64:
                check_double("model.classifier", self.classifier, shape)
            self._check_outputs(logits, shape)
            self._num_logits = logits.shape[1]
        check_labels(y, len(x), self._num_logits, f"labels of {name}")

    def _check_outputs(self, logits: Tensor, image_shape: tuple[int, int, int]) -> None:
        """Check that the outputs are logits, not probabilities, and that without noise they do not change."""
        warn_of_probabilities("model.classifier", logits)
        if not self.stochastic:
            check_repeatable("model.classifier", self.classifier, image_shape)

    def note_image_shape(self, image_shape: tuple[int, int, int]) -> None:
        """Store the shape of the images, for which ``verifier`` is chosen."""
        self._image_shape = image_shape

    def check_shapes(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Run the networks on a few images of the data's shape.

        Raises:
            SettingError: if the classifier fails on an image, returns another number of logits, or gives other logits
                in each pass.
        """
        logits = run_blank("model.classifier", self.classifier, image_shape)
        remedy = f"the data has {num_classes} classes; set model.classifier.init_args.num_classes to that"
        if logits.dim() != 2:
            remedy = "give a network from images (B, C, H, W) to logits (B, K); flatten or pool before its last layer"
        output = f"{type(self.classifier).__name__} with output {tuple(logits.shape[1:])}"
        require(logits.shape == (2, num_classes), "model.classifier", output, remedy)
        if self._trainer is not None and self.trainer.precision != "64-true":
            check_double("model.classifier", self.classifier, image_shape)
        self._check_outputs(logits, image_shape)
        check_registered("model.classifier", self.classifier, image_shape)
        self._num_logits, self._image_shape = num_classes, image_shape
        if self._trainer is not None and self.trainer.state.fn == "fit":
            size = getattr(self.data_module, "batch_size", None)
            batch = size // self.trainer.world_size if isinstance(size, int) else 2
            check_training_mode("model.classifier", self.classifier, image_shape, logits, max(batch, 1))
