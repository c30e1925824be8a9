"""Writes the predictions of ``predict`` to a file."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from callbacks._folders import log_folder
from callbacks.evaluation.verifiers import try_verifier
from lightning_modules.base import RobustClassifier, TrainingModule, check_precision
from robust.bounds import Auto, Verifier, certify
from robust.errors import require
from robust.folders import replacing
from robust.metrics import Gathered

_CERTIFIED = "certified_epsilon/"


class Predictions(Callback):
    """Writes ``predictions.csv`` in the log folder: one row for each image, on any number of processes.

    Columns:

    - ``sample``: index in the data; ``label``: class in the data, empty if it has none; ``prediction``: predicted class
    - ``class``: name of the predicted class, if the data names its classes
    - ``file``: path of the image, if it has a file of its own
    - ``probability/<class>``: softmax of the logits
    - ``certified_epsilon/<norm>`` or ``certified_epsilon/own_budgets``, with ``verifier`` or ``epsilons``: the largest
      size in which every perturbed image provably has the predicted class, 0 if there is none; rounding errors are
      bounded, as in tests (:func:`robust.bounds.certify`)

    Every run of ``train.py predict`` has this callback. To certify predictions, add one with ``verifier`` or
    ``epsilons`` to ``trainer.callbacks``; it replaces the default one.

    Args:
        verifier: verifier of the predictions; ``auto`` is the module's verifier, and so is null with ``epsilons``.
        epsilons: sizes of the threat models in (0, 1], in pixel units; with ``verifier``, by default the module's.

    Raises:
        SettingError: if a size is out of range, the verifier cannot bound the network, or two callbacks certify.
    """

    def __init__(self, verifier: Verifier | Auto | None = None, epsilons: list[float] | None = None) -> None:
        require(epsilons != [], "Predictions.epsilons", epsilons, "give at least one size, or leave it out")
        for epsilon in epsilons or []:
            require(0 < epsilon <= 1, "Predictions.epsilons", epsilon, "give sizes in (0, 1], in pixel units")
        self.verifier, self.epsilons = verifier, epsilons
        self._rows: Gathered | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check, if this callback certifies, that the module can be certified and that no other callback certifies."""
        if stage != "predict" or not self._certifies:
            return
        count = sum(other._certifies for other in _of_run(trainer))
        require(count == 1, "trainer.callbacks", f"{count} x Predictions", "give one with verifier or epsilons")
        remedy = "it is not a classifier; leave out Predictions.verifier and epsilons"
        require(isinstance(pl_module, RobustClassifier), "model", type(pl_module).__name__, remedy)
        check_precision(pl_module, trainer, type(self).__name__)

    def on_predict_start(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Reset; a stopped prediction may have left rows."""
        self._rows = None

    def on_predict_batch_end(  # type: ignore[override]
        self, trainer: Trainer, pl_module: TrainingModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Store a batch's predictions."""
        if not self._writes(trainer):
            return
        predictions = outputs["prediction"]
        parts = batch if isinstance(batch, list | tuple) else [batch]
        columns = {"label": parts[1]} if len(parts) > 1 else {}
        columns["prediction"] = predictions
        if "logits" in outputs:
            columns["probability"] = outputs["logits"].float().softmax(1)
        if self._certifies:
            assert isinstance(pl_module, RobustClassifier)
            columns |= self._certified(pl_module, parts[0], predictions)
        if self._rows is None:
            self._rows = Gathered(list(columns)).to(predictions.device)
        self._rows.update(torch.tensor(pl_module.data_indices, device=predictions.device), *columns.values())

    def on_predict_end(self, trainer: Trainer, pl_module: TrainingModule) -> None:  # type: ignore[override]
        """Gather the rows of all processes and write the file."""
        path = log_folder(trainer) / "predictions.csv"
        if self._rows is None:
            return
        rows = {name: values.tolist() for name, values in self._rows.rows().items()}
        self._rows = None
        if trainer.is_global_zero:
            text: Any = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}  # file names may be any bytes
            with replacing(path) as unfinished, unfinished.open("w", **text) as file:
                csv.writer(file).writerows(_table(rows, pl_module.data_module))
        rank_zero_info(f"Predictions: {path}")

    @property
    def _certifies(self) -> bool:
        return self.verifier is not None or self.epsilons is not None

    def _writes(self, trainer: Trainer) -> bool:
        """Whether this callback writes the file: the callback that certifies does, or else the first one."""
        return self is next((other for other in _of_run(trainer) if other._certifies), _of_run(trainer)[0])

    def _certified(self, module: RobustClassifier, images: Tensor, predictions: Tensor) -> dict[str, Tensor]:
        """The largest certified size of each image in each threat model, (B,), by column."""
        verifier = module.verifier if self.verifier is None or isinstance(self.verifier, str) else self.verifier
        sizes: dict[str, Tensor] = {}
        with torch.inference_mode(False), torch.no_grad():
            x, y = images.clone(), predictions.clone()
            for epsilon in sorted(self.epsilons or [module.epsilon]):
                for first in module.threat_models(x[:1], epsilon).values():
                    try_verifier("Predictions.verifier", verifier, module, first.region(x[:1]), y[:1])
                threat_models = module.threat_models(x, epsilon)
                norms = [threat_model.norm for threat_model in threat_models.values()]
                for name, threat_model in threat_models.items():
                    certified = certify(verifier, module.classifier, threat_model, x, y).certified
                    alone = threat_model.norm is not None and norms.count(threat_model.norm) == 1
                    column = f"{_CERTIFIED}{threat_model.norm if alone else name}"  # a ball's name contains its size
                    before = sizes.get(column, torch.zeros(len(x), dtype=torch.float64, device=x.device))
                    size = epsilon if threat_model.epsilon is None else threat_model.epsilon  # by norm
                    sizes[column] = torch.where(certified, size, before)
        return sizes


def _of_run(trainer: Trainer) -> list[Predictions]:
    """The run's callbacks of this class; the last one is the default of the command line."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, Predictions)]


def _table(rows: dict[str, list[Any]], data: Any) -> Iterator[list[Any]]:
    """The header and the rows of the file."""
    names = getattr(data, "class_names", None)
    files = data.file_names(data.predict_part) if hasattr(data, "file_names") else None
    columns: dict[str, list[Any]] = {
        "sample": rows["index"],
        "label": rows.get("label", [""] * len(rows["index"])),
        "prediction": rows["prediction"],
    }
    if names:
        columns["class"] = [names[prediction] for prediction in rows["prediction"]]
    if files:
        columns["file"] = [files[index] for index in rows["index"]]
    if "probability" in rows:
        by_class = zip(*rows["probability"], strict=True)
        for name, values in zip(names or range(len(rows["probability"][0])), by_class, strict=True):
            columns[f"probability/{name}"] = [f"{value:.6g}" for value in values]
    for name in rows:
        if name.startswith(_CERTIFIED):
            columns[name] = [f"{size:.6g}" for size in rows[name]]
    yield list(columns)
    yield from (list(row) for row in zip(*columns.values(), strict=True))
