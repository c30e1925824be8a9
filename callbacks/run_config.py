"""Writes the configuration of a run into its log folder."""

from __future__ import annotations

import itertools
from pathlib import Path

from jsonargparse import Namespace
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback


class RunConfig(SaveConfigCallback):
    """Writes the settings of a run to ``config.yaml``.

    No file is overwritten: if there is one, a test writes ``config-test.yaml``, the next one ``config-test-2.yaml``.

    Args:
        parser: parser of the command line.
        config: the parsed settings.
        text: the settings as YAML; Lightning's own callback would write and check all settings once more.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, text: str) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self._text = text
        self._folder = Path()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file, once."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)  # all processes ask for it
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file in the first process."""
        fn = getattr(stage, "value", stage)
        names = (f"config{f'-{fn}' if n else ''}{f'-{n}' if n > 1 else ''}.yaml" for n in itertools.count())
        path = next(path for name in names if not (path := self._folder / name).exists())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._text, encoding="utf-8")
