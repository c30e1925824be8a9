"""Writes the configuration of a run into its log folder."""

from __future__ import annotations

from pathlib import Path

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import SaveConfigCallback


class RunConfig(SaveConfigCallback):
    """Lightning's without overwriting: writes ``config.yaml``, then ``config-test.yaml``, ``config-test-2.yaml``."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        fn = getattr(stage, "value", stage)
        names = (f"config{f'-{fn}' if n else ''}{f'-{n}' if n > 1 else ''}.yaml" for n in range(1_000_000))
        self.config_filename = next(name for name in names if not (folder / name).exists())
        super().setup(trainer, pl_module, stage)
