"""Compares a resumed run's optimizers and schedules with those of the checkpoint, and applies the chosen settings."""

from __future__ import annotations

import copy
from typing import Any

from pytorch_lightning import Trainer

from lightning_modules.base.settings import Description, ResumeSettings, describe_states, differences, require_same
from robust.errors import require


class ResumedOptimizers:
    """The optimizers and schedules of a resumed training: those of the checkpoint and the configured ones.

    Args:
        checkpoint: checkpoint as Lightning loaded it, or None. Lightning reads its optimizer states after
            :meth:`compare`.
    """

    def __init__(self, checkpoint: dict[str, Any] | None) -> None:
        self._checkpoint = checkpoint
        self._saved: Description = []
        self._groups: list[list[dict[str, Any]]] = []
        self._schedules: list[dict[str, Any]] = []

    def compare(self, trainer: Trainer, configured: Description, choice: ResumeSettings | None) -> None:
        """Compare the configured optimizers with the checkpoint's, before Lightning loads the states into them.

        Raises:
            SettingError: if they differ and ``choice`` is None, or the checkpoint's settings cannot be applied.
        """
        if self._checkpoint is None:
            return
        states = self._checkpoint["optimizer_states"]
        self._saved = self._checkpoint.get("optimizers") or describe_states(states)
        remedy = f"the checkpoint has {len(self._saved)}; configure the method as in its training"
        require(len(configured) == len(self._saved), "model optimizers", len(configured), remedy)
        require_same("model optimizers", configured, self._saved, choice)
        for index, (optimizer, own, saved) in enumerate(zip(trainer.optimizers, configured, self._saved, strict=True)):
            for part in ("class", "schedule"):
                _require_one_class(index, part, own, saved, choice)
            if choice == "config" and own["class"] != saved.get("class", own["class"]):
                states[index] = optimizer.state_dict()  # another class cannot read the old state, so it starts anew
        self._groups = [
            [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]
        self._schedules = [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs]
        if choice == "config" and len(self._schedules) != len(self._checkpoint["lr_schedulers"]):
            self._checkpoint["lr_schedulers"] = copy.deepcopy(self._schedules)

    def apply(self, trainer: Trainer, configured: Description, choice: ResumeSettings | None) -> Description:
        """Apply the chosen settings to the optimizers after Lightning has loaded the states; return the settings."""
        if self._checkpoint is None:
            return configured
        if choice != "config" or not any(differences(configured, self._saved)):
            return self._saved if choice == "checkpoint" and self._checkpoint.get("optimizers") else configured
        for optimizer, groups in zip(trainer.optimizers, self._groups, strict=True):
            for group, settings in zip(optimizer.param_groups, groups, strict=True):
                group.update(settings)
        for config, state in zip(trainer.lr_scheduler_configs, self._schedules, strict=True):
            config.scheduler.load_state_dict(state)  # the initial state; step_schedules advances it at the next batch
        return configured


def _require_one_class(
    index: int, part: str, own: dict[str, Any], saved: dict[str, Any], choice: ResumeSettings | None
) -> None:
    """Refuse to resume with the checkpoint's settings if they belong to another class."""
    kinds = [description.get(part) for description in (own, saved)]
    if part == "schedule":
        kinds = [None if kind is None else kind["class"] for kind in kinds]
    remedy = f"the checkpoint has {kinds[1]}; configure that class, or set resume_settings to config"
    same = part not in saved or kinds[0] == kinds[1]
    require(same or choice != "checkpoint", f"model optimizers.{index}.{part}", kinds[0], remedy)
