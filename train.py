"""The command line: ``train.py {fit,validate,test,predict} --config FILE [--config FILE ...] [--setting value ...]``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

import callbacks
import datamodules  # noqa: F401 - makes its classes known by their bare names
import lightning_modules
from robust.errors import NonFiniteLossError, SettingError, require


class OneLineParser(LightningArgumentParser):
    """Says what is wrong with a setting in one line, without the usage text of several hundred settings."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the cause and leave with status 2."""
        sys.stderr.write(f"error: {one_line(message)} (see train.py SUBCOMMAND --help)\n")
        sys.exit(2)


def one_line(message: str) -> str:
    """The setting and the cause out of jsonargparse's message, which lists everything that it tried."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    keys = re.findall(r'Parser key "([^"]+)"', message)
    causes = [line for line in lines if re.search(r"is not accepted|Expected a|does not accept|not in|Got value", line)]
    text = (causes or lines)[0]
    text = re.sub(r"Problem with given class_path '([^']+)':", r"\1:", text)
    return f"{keys[-1]}: {text}" if keys and keys[-1] not in text else text


class RobustCLI(LightningCLI):
    """LightningCLI with an epsilon schedule, a checkpoint of every epoch, the record of results and plain errors."""

    def __init__(self, args: list[str] | None = None) -> None:
        self.results = callbacks.Results()
        super().__init__(
            lightning_modules.RobustClassifier,
            datamodules.ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults={"callbacks": [self.results]},
            save_config_kwargs={"overwrite": True},
            parser_class=OneLineParser,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Settings beside model, data and trainer."""
        parser.add_lightning_class_args(callbacks.EpsilonScheduler, "epsilon_schedule")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.filename": "{epoch}"})
        parser.add_argument("--test_after_fit", type=bool, default=False, help="Test the final weights after fit.")

    def before_instantiate_classes(self) -> None:
        """Note the settings for the record, and look for the checkpoint before building anything."""
        config = self.config[self.subcommand]
        self.results.config = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_check=True))
        path = config.get("ckpt_path")
        found = path in (None, "best", "last", "hpc") or "://" in str(path) or Path(path).is_file()
        require(found, "ckpt_path", path, "no such file; checkpoints are in the log folder under checkpoints/")

    def after_fit(self) -> None:
        """Test what was trained, if asked."""
        if self.config[self.subcommand].test_after_fit:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)

    def _parse_ckpt_path(self) -> None:
        """Never let a checkpoint's stored settings override the command line's (Lightning 2.6 does)."""


def main(args: list[str] | None = None) -> None:
    """Run the command line; a wrong setting ends it in one line and status 2."""
    try:
        RobustCLI(args)
    except (SettingError, NonFiniteLossError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
