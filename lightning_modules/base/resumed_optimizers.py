"""The optimizers and schedules of a run that resumes: compared with the checkpoint's, then settled."""

from __future__ import annotations

import copy
from typing import Any

from pytorch_lightning import Trainer

from lightning_modules.base.settings import Described, ResumeSettings, described_by_states, differences, require_same
from robust.errors import require


class ResumedOptimizers:
    """The checkpoint that a training goes on from, and the states of optimizers and schedules before it was read.

    Args:
        checkpoint: as Lightning has loaded it, whose optimizer states are read after :meth:`compare`; None without one.
    """

    def __init__(self, checkpoint: dict[str, Any] | None) -> None:
        self._checkpoint = checkpoint
        self._saved: Described = []
        self._groups: list[list[dict[str, Any]]] = []
        self._schedules: list[dict[str, Any]] = []

    def compare(self, trainer: Trainer, configured: Described, decides: ResumeSettings | None) -> None:
        """Compare the configured optimizers with the checkpoint's, before Lightning gives them its states.

        Raises:
            SettingError: if they differ and nothing decides, or the checkpoint's cannot be had.
        """
        if self._checkpoint is None:
            return
        states = self._checkpoint["optimizer_states"]
        self._saved = self._checkpoint.get("optimizers") or described_by_states(states)
        remedy = f"the checkpoint has {len(self._saved)}; configure the method as it was"
        require(len(configured) == len(self._saved), "model optimizers", len(configured), remedy)
        require_same("model optimizers", configured, self._saved, decides)
        for index, (optimizer, mine, theirs) in enumerate(
            zip(trainer.optimizers, configured, self._saved, strict=True)
        ):
            for part in ("class", "schedule"):
                _require_one_kind(index, part, mine, theirs, decides)
            if decides == "config" and mine["class"] != theirs.get("class", mine["class"]):
                states[index] = optimizer.state_dict()  # another class cannot read the old state: it begins anew
        self._groups = [
            [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]
        self._schedules = [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs]
        if decides == "config" and len(self._schedules) != len(self._checkpoint["lr_schedulers"]):
            self._checkpoint["lr_schedulers"] = copy.deepcopy(self._schedules)

    def settle(self, trainer: Trainer, configured: Described, decides: ResumeSettings | None) -> Described:
        """Give the optimizers the settings that hold, after Lightning has read the states; what is used then."""
        if self._checkpoint is None:
            return configured
        if decides != "config" or not any(differences(configured, self._saved)):
            return self._saved if decides == "checkpoint" and self._checkpoint.get("optimizers") else configured
        for optimizer, groups in zip(trainer.optimizers, self._groups, strict=True):
            for group, settings in zip(optimizer.param_groups, groups, strict=True):
                group.update(settings)
        for config, state in zip(trainer.lr_scheduler_configs, self._schedules, strict=True):
            config.scheduler.load_state_dict(state)  # at the start; the next batch brings it to its epoch
        return configured


def _require_one_kind(
    index: int, part: str, mine: dict[str, Any], theirs: dict[str, Any], decides: ResumeSettings | None
) -> None:
    """Refuse to go on with the checkpoint's settings where they are of another class."""
    kinds = [each.get(part) for each in (mine, theirs)]
    if part == "schedule":
        kinds = [None if kind is None else kind["class"] for kind in kinds]
    remedy = f"the checkpoint has {kinds[1]}; configure that class, or set resume_settings to config"
    same = part not in theirs or kinds[0] == kinds[1]
    require(same or decides != "checkpoint", f"model optimizers.{index}.{part}", kinds[0], remedy)
