"""The command line: ``train.py {fit,validate,test,predict} --config FILE [--config FILE ...] [--name value ...]``."""

from __future__ import annotations

import logging
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_warn

import callbacks
import datamodules
import lightning_modules
from cli_errors import OneLineParser, causes, lightnings_choice, refuse_null
from lightning_modules.base.settings import ResumeSettings
from robust.errors import ContradictionError, NonFiniteLogitsError, NonFiniteLossError, SettingError, require

# what a user can do something about
ONE_LINE = (SettingError, NonFiniteLossError, NonFiniteLogitsError, ContradictionError, MisconfigurationException)


class RobustCLI(LightningCLI):
    """LightningCLI with an epsilon schedule, a checkpoint of every epoch, the record of results and plain errors."""

    def __init__(self, args: list[str] | None = None) -> None:
        self.results = callbacks.Results()
        super().__init__(
            lightning_modules.TrainingModule,
            datamodules.ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults={
                "callbacks": [
                    callbacks.Peers(),
                    callbacks.Interruption(),
                    self.results,
                    callbacks.Predictions(),
                    callbacks.Monitors(),
                ]
            },
            save_config_callback=callbacks.RunConfig,
            parser_class=OneLineParser,
            auto_configure_optimizers=False,  # the methods bring their own
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Settings beside model, data and trainer."""
        parser.add_lightning_class_args(callbacks.EpsilonScheduler, "epsilon_schedule")
        parser.add_lightning_class_args(callbacks.Checkpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.filename": "{epoch}"})
        parser.add_argument(
            "--resume_settings",
            type=ResumeSettings | None,
            default=None,
            help="Whose optimizers, schedules and data hold where a checkpoint has others: checkpoint or config.",
        )
        parser.add_argument("--test_after_fit", type=bool, default=False, help="Test the final weights after fit.")

    def before_instantiate_classes(self) -> None:
        """Note the settings for the record, and look at the checkpoint before building anything."""
        config = self.config[self.subcommand]
        dumped = self._parser(self.subcommand).dump(config, skip_validation=True, skip_none=False)
        self.results.config = yaml.safe_load(dumped)
        for part in ("model", "data"):
            refuse_null(self.results.config[part], part)
        path = config.get("ckpt_path")
        if path is None and self.subcommand != "fit":
            rank_zero_warn(f"ckpt_path: got None; {self.subcommand} runs on untrained weights, give a checkpoint")
        if path not in (None, "best", "last", "hpc") and "://" not in str(path):
            remedy = "no such file; checkpoints are in the log folder under checkpoints/"
            require(Path(path).is_file(), "ckpt_path", path, remedy)
            remedy = "the file is no checkpoint, or its end is missing; give one that fit wrote"
            require(zipfile.is_zipfile(path), "ckpt_path", path, remedy)

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; what they say of a setting is not to drown in what jsonargparse adds."""
        try:
            super().instantiate_classes()
            self.model.resume_settings = self.config[self.subcommand].get("resume_settings")
        except ValueError as error:
            for cause in causes(error):
                if isinstance(cause, SettingError):
                    raise cause from None
                if choice := lightnings_choice(str(cause)):
                    raise choice from None
            raise

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Leave out the checkpoints where ``trainer.enable_checkpointing`` is false."""
        wanted = config.get("enable_checkpointing") is not False
        kept = [each for each in callbacks if wanted or not isinstance(each, ModelCheckpoint)]
        return super()._instantiate_trainer(config, kept)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's, but for its table of figures: ours is one of all figures, and in results.json."""
        return {name: skipped | {"verbose"} for name, skipped in LightningCLI.subcommands().items()}

    def validate(self, **kwargs: Any) -> None:
        """Run the subcommand of this name."""
        self.trainer.validate(**kwargs, verbose=False)

    def test(self, **kwargs: Any) -> None:
        """Run the subcommand of this name."""
        self.trainer.test(**kwargs, verbose=False)

    def after_fit(self) -> None:
        """Test what was trained, if asked."""
        if self.config[self.subcommand].test_after_fit:
            self.test(model=self.model, datamodule=self.datamodule)

    def _parse_ckpt_path(self) -> None:
        """Never let a checkpoint's stored settings override the command line's (Lightning 2.6 does)."""


def main(args: list[str] | None = None) -> None:
    """Run the command line; a wrong setting ends it in one line and status 2."""
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")  # Lightning with torch 2.15
    warnings.filterwarnings("ignore", ".*does not have many workers")  # images are in memory
    warnings.filterwarnings("ignore", r"\s*skip_none parameter was deprecated")  # Lightning 2.6 needs it too
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.msg)
    callbacks.watch_launcher()
    try:
        RobustCLI(args)
    except ONE_LINE as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
