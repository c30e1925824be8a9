"""Scores of the robustness framework, such as R4 on the data manifold, estimated from samples."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from callbacks._stages import Stage
from callbacks.evaluation.base import Evaluation
from callbacks.evaluation.robustness_score import RobustnessScore
from callbacks.evaluation.saved_rows import Rows
from lightning_modules.base import RobustClassifier
from robust.errors import require
from robust.metrics import Gathered, SampledScore
from robust.progress import tracked
from robust.scores import Score, diameter, draw_epsilons, predicted
from robust.scores.samplers import CHUNK_SIZE


class SampledRobustness(Evaluation):
    """A robustness score from samples: for each image and radius, the fraction of neighbours with the same prediction.

    Radii and neighbours depend only on ``seed`` and the image's index in the data, so that comparisons of models, on
    any number of processes, use the same draws. Otherwise they would vary too much: the mean of 1 / epsilon over 200
    radii is between 0.16 and 1 in most draws. Logged, by default with the score's name in lower case:

    - ``<stage>/robustness_score/<name>``: mean over images and radii (eq. 9), with the radii's weight
    - ``.../<name>/integral``: this mean times the cube's diameter, the integral over radii
    - ``.../<name>/normalized``: this mean divided by that of a constant classifier, in [0, 1]
    - ``.../<name>/samples``: number of images

    The file ``robustness_score/<stage>_<name>.pt`` in the log folder has ``seed``, ``epsilons`` (E,), ``curve`` (E,),
    and for each image ``index``, ``measure`` (E,) and, if the sampler draws codes, ``codes`` (M, Z).

    Source: general robustness framework (Tibo, Jaeger, Larsen 2022), Sec. 3.

    Args:
        score: the triple (Q, H, G), such as ``robust.scores.R4``.
        epsilons: number of radii.
        name: name of the score in metrics, such as ``r3_same_label``, to tell two scores of one class apart.
        **settings: settings of :class:`Evaluation`; ``seed`` seeds radii and neighbours.

    Raises:
        SettingError: if a setting is out of its range, or the network is stochastic.
    """

    def __init__(
        self,
        score: Score,
        epsilons: int = 200,
        name: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        require(epsilons >= 1, "SampledRobustness.epsilons", epsilons, "give at least 1")
        fits = name is None or re.fullmatch(r"\w+", name) is not None
        require(fits, "SampledRobustness.name", name, "give letters, digits and underscores")
        self.score = score
        self.epsilons = epsilons
        self.name = name or type(score).__name__.lower()

    def namespaces(self, module: LightningModule) -> set[str]:
        """The name of the score."""
        return {self.name}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that no other evaluation logs a score of this name."""
        super().setup(trainer, pl_module, stage)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        alone = self.name != "r2" or not any(isinstance(each, RobustnessScore) for each in callbacks)
        require(alone, "SampledRobustness.name", self.name, "RobustnessScore logs it, too; give another name")

    def try_out(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:
        """Check that the network has no noise, and draw neighbours of a blank image."""
        self._require_no_noise(module)
        self.score.sampler(x, self._radii(x)[:1], [0])

    @staticmethod
    def _require_no_noise(module: RobustClassifier) -> None:
        remedy = "its predictions differ from pass to pass; leave out SampledRobustness"
        require(not module.stochastic, "model", type(module).__name__, remedy)

    def evaluate(self, module: RobustClassifier, x: Tensor, y: Tensor) -> None:  # noqa: D102
        self._require_no_noise(module)  # it may begin in the course of a training
        epsilons = self._radii(x)
        compute = partial(self._measured, module, x, epsilons)
        rows = self.saved(module, self.name, [self.score, self.epsilons], (x, y), compute)
        constant = self.score.robustness(torch.ones_like(epsilons)[None], epsilons)[0]
        score = partial(SampledScore, epsilons, constant, diameter(tuple(x.shape[1:])))
        self.update("score", score, self.score.robustness(rows["measure"], epsilons))
        columns = ["measure", "codes"] if "codes" in rows else ["measure"]
        values = [rows["measure"].float(), *(rows[name] for name in columns[1:])]
        self.update("table", partial(Gathered, columns), self.indices, *values)

    def _measured(self, module: RobustClassifier, x: Tensor, epsilons: Tensor) -> Rows:
        """Measures (B, E) of the images' neighbours by radius, and the codes of the neighbours if there are any."""
        keys = [hash((self.seed, index)) for index in self.indices.tolist()]

        def classify(images: Tensor) -> Tensor:
            return torch.cat([predicted(module, part) for part in tracked(torch.split(images, CHUNK_SIZE))])

        measure, points = self.score.measure(classify, self.score.points(x, keys), epsilons, keys)
        return {"measure": measure} | ({} if points.codes is None else {"codes": points.codes})

    def _radii(self, x: Tensor) -> Tensor:
        return draw_epsilons(self.epsilons, tuple(x.shape[1:]), self.seed).to(x.device)

    def compute(self, module: RobustClassifier) -> dict[str, Tensor]:
        """The score in its three scales, and the number of images."""
        score, name = self.metrics["score"].compute(), f"robustness_score/{self.name}"
        return {
            name: score["mean"],
            f"{name}/integral": score["integral"],
            f"{name}/normalized": score["normalized"],
            f"{name}/samples": score["mean"].new_tensor(float(len(self.rows("table")["index"]))),
        }

    def write(self, stage: Stage, module: RobustClassifier, values: dict[str, Tensor]) -> None:
        """Write draws and measures to a file."""
        score = self.metrics["score"]
        record = {"epsilons": score.epsilons, "curve": score.compute()["curve"], **self.rows("table")}
        path = self.folder / "robustness_score" / f"{stage}_{self.name}.pt"
        if module.trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"seed": self.seed} | {name: column.cpu() for name, column in record.items()}, path)
        rank_zero_info(f"Draws of {self.name}: {path}")
