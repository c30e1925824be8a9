"""The command line: ``train.py {fit,validate,test,predict,export} --config FILE [--config FILE] [--name value]``."""

from __future__ import annotations

import logging
import sys
import warnings
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
from cli import checkpoints
from cli.checkpoint_settings import importable, read_model, values_of
from cli.class_settings import check_classes, check_finite, with_path
from cli.composition import check_groups
from cli.config_files import LARGEST_SEED, RefusedYAMLError
from cli.data_sizes import build_data, sizes_from_data
from cli.errors import OneLineParser, refuse_null
from cli.export import ExportTrainer
from cli.idle_optimizers import drop_idle_optimizers
from cli.known_errors import causes, known_error, lightnings_choice
from cli.run_settings import check_batch_sizes, check_checkpoint_settings, check_folders
from cli.sources import settings_in, settings_in_arguments, sources_of
from cli.trainer_settings import check_trainer, num_processes, read_whole_numbers
from cli.user_code import constructor_error
from cli.user_modules import add_folder
from lightning_modules.base.settings import ResumeSettings
from robust.checkpoints import is_elsewhere
from robust.errors import (
    ContradictionError,
    GradientError,
    InvalidAttackError,
    NonFiniteLogitsError,
    NonFiniteLossError,
    SettingError,
    require,
)

WORDS = ("best", "last", "hpc")
# errors that the user can fix
ONE_LINE = (
    SettingError,
    NonFiniteLossError,
    NonFiniteLogitsError,
    GradientError,
    ContradictionError,
    InvalidAttackError,
    MisconfigurationException,
    RefusedYAMLError,
)


class RobustCLI(LightningCLI):
    """LightningCLI with an epsilon schedule, a checkpoint every epoch, a record of results and one-line errors."""

    def __init__(self, args: list[str] | None = None) -> None:
        self.results = callbacks.Results()
        self._downloaded: checkpoints.Downloaded | None = None
        self._arguments = sys.argv[1:] if args is None else list(args)
        self._model: dict[str, Any] | None = None  # settings of the checkpoint's model
        try:
            self._read_checkpoint_settings()
            self._run(args)
        except SettingError as error:
            raise with_path(error, self.results.config) from error.__cause__
        finally:
            if self._downloaded is not None:
                self._downloaded.folder.cleanup()

    def _run(self, args: list[str] | None) -> None:
        super().__init__(
            lightning_modules.TrainingModule,
            datamodules.ImageDataModule,
            trainer_class=ExportTrainer,
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
                    callbacks.Progress(),
                    callbacks.TensorBoard(),
                    callbacks.AdversarialExamples(),
                ]
            },
            save_config_callback=callbacks.RunConfig,
            parser_class=OneLineParser,
            auto_configure_optimizers=False,  # methods configure their own optimizers
            args=args,
        )

    def _read_checkpoint_settings(self) -> None:
        """Read the model's settings from the checkpoint of an evaluation; the command line and files override them."""
        command, paths = "".join(self._arguments[:1]), values_of(self._arguments, "--ckpt_path")
        if not paths or paths[-1] in (*WORDS, "null") or command not in ("validate", "test", "predict", "export"):
            return
        path, configs = paths[-1], values_of(self._arguments, "--config", "-c")
        if is_elsewhere(path):
            self._downloaded = checkpoints.fetch(path)
        file = path if self._downloaded is None else self._downloaded.path
        model = read_model(file, path, needed=not configs and not values_of(self._arguments, "--model"))
        self._model = model and importable(model, path, configs)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """The parser of a subcommand, without settings if another one is called: all settings take over a second."""
        command = self._arguments[0] if self._arguments else ""
        if command != subcommand and command in self.subcommands():
            return self.init_parser(**kwargs)
        return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the settings besides model, data and trainer."""
        parser.add_lightning_class_args(callbacks.EpsilonScheduler, "epsilon_schedule")
        parser.add_lightning_class_args(callbacks.Checkpoint, "checkpoint")
        parser.set_defaults({"checkpoint.save_last": True, "checkpoint.filename": "{epoch}"})
        if self._model is not None:
            parser.set_defaults({"model": self._model})
        parser.add_argument(
            "--resume_settings",
            type=ResumeSettings | None,
            default=None,
            help="Settings to use if a checkpoint has other optimizers, schedules or data: checkpoint or config.",
        )
        parser.add_argument("--test_after_fit", type=bool, default=False, help="Test the final weights after fit.")
        read_whole_numbers(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments, and check the seed before it is used."""
        super().parse_arguments(parser, args)
        seed = self.config[self.config.subcommand].get("seed_everything")
        fits = isinstance(seed, bool) or seed is None or 0 <= seed <= LARGEST_SEED
        require(fits, "seed_everything", seed, f"give 0 to {LARGEST_SEED}")

    def before_instantiate_classes(self) -> None:
        """Store the settings for the record, and check them before anything is built."""
        config = self.config[self.subcommand]
        parser: Any = self._parser(self.subcommand)
        given = {"command line": settings_in_arguments(self._arguments), "file": parser.read_settings}
        drop_idle_optimizers(config.model, *given.values(), trains=self.subcommand == "fit")
        dumped = parser.dump(config, skip_validation=True, skip_none=False)
        self.save_config_kwargs["text"] = dumped
        # with config_dump set, Lightning does not make the same dump again
        self.results.config = self.config_dump = plain = yaml.CSafeLoader(dumped).get_single_data()
        given["checkpoint"] = list(settings_in({"model": self._model})) if self._model else []
        self.results.sources = sources_of(plain, given)
        check_groups(plain)
        for part in ("model", "data"):
            refuse_null(plain[part], part)
        refuse_null(plain["trainer"].get("callbacks"), "trainer.callbacks")
        check_trainer(config.trainer, str(self.subcommand), test_after_fit=bool(config.get("test_after_fit")))
        check_checkpoint_settings(config.checkpoint)
        for part in ("model", "data", "epsilon_schedule", "checkpoint"):
            check_finite(plain[part].get("init_args", {}) if "class_path" in plain[part] else plain[part], part)
            check_classes(plain[part], part)
        check_classes(plain["trainer"].get("callbacks"), "trainer.callbacks")
        check_batch_sizes(plain["data"], num_processes(config.trainer), str(self.subcommand))
        check_folders(plain)
        self._warn_of_untrained_weights(config.get("ckpt_path"), plain["model"].get("init_args") or {})
        self._find_checkpoint(config.get("ckpt_path"))

    def _warn_of_untrained_weights(self, checkpoint: Any, model: dict[str, Any]) -> None:
        """Warn if an evaluation has no checkpoint, unless the weights of all its networks are given."""
        if checkpoint is not None or self.subcommand in ("fit", "export"):
            return
        untrained = "untrained weights" if model.get("weights") is None else "an untrained model.generator"
        if model.get("weights") is None or model.get("generator") is not None:
            rank_zero_warn(f"ckpt_path: got None; {self.subcommand} runs on {untrained}; give a checkpoint")

    def _find_checkpoint(self, path: Any) -> None:
        """Fetch a checkpoint if it is elsewhere, and check it; words need the run's folder and are found later."""
        if path is None or path in WORDS:
            return
        config = self.config[self.subcommand]
        if is_elsewhere(str(path)):
            self._downloaded = self._downloaded or checkpoints.fetch(str(path))
            config.ckpt_path = self._downloaded.path
        checkpoints.check(str(config.ckpt_path), str(path), resumes=self.subcommand == "fit")

    def instantiate_classes(self) -> None:
        """Build data, model and trainer, and raise their errors without the text that jsonargparse adds."""
        config = self.config[self.subcommand]
        settings = config.data
        try:
            config.data = build_data(self._parser(self.subcommand), settings)
            given = {name for names in self.results.sources.values() for name in names}
            for key, value in sizes_from_data(self.results.config["model"], config.data, given).items():
                config.model[key] = value
            super().instantiate_classes()
            remedy = "its constructor does not call super().__init__(...) with the settings of its base; add the call"
            called = "constructor_settings" in vars(self.model)
            require(called, "model", f"{type(self.model).__module__}.{type(self.model).__qualname__}", remedy)
        except Exception as error:
            for cause in causes(error):
                if isinstance(cause, SettingError):
                    raise cause from None
                if choice := lightnings_choice(str(cause)) or known_error(cause):
                    raise choice from None
            if failed := constructor_error(cause, self.results.config):
                raise failed from cause
            raise
        finally:
            config.data = settings
        self.model.constructor_settings = self.results.config["model"]
        self.model.resume_settings = self.config[self.subcommand].get("resume_settings")
        word = self.config[self.subcommand].get("ckpt_path")
        if word in WORDS:
            root = Path(self.trainer.default_root_dir)
            folder = (
                self.config[self.subcommand].checkpoint.dirpath or Path(self.trainer.log_dir or root) / "checkpoints"
            )
            path = str(checkpoints.find_by_word(word, root, Path(folder)))
            checkpoints.check(path, path, resumes=self.subcommand == "fit")
            self.config_init[self.subcommand].ckpt_path = self.results.initial_checkpoint = path

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Build the trainer, without the checkpoint callback if ``trainer.enable_checkpointing`` is false."""
        enabled = config.get("enable_checkpointing") is not False
        callbacks = [callback for callback in callbacks if enabled or not isinstance(callback, ModelCheckpoint)]
        return super()._instantiate_trainer(config, callbacks)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands without its options for tables and for code in checkpoints, and ``export``."""
        skipped = LightningCLI.subcommands() | {"export": {"model", "datamodule", "config"}}
        return {name: arguments | {"verbose", "weights_only"} for name, arguments in skipped.items()}

    def fit(self, **kwargs: Any) -> None:
        """Train, and run no code from the checkpoint; first check the settings of a test that follows."""
        if self.config[self.subcommand].test_after_fit:
            self.trainer.callbacks.append(callbacks.TestAfterFit())  # type: ignore[attr-defined]
        self.trainer.fit(**kwargs, weights_only=True)

    def validate(self, **kwargs: Any) -> None:
        """Validate without Lightning's table, since results.json has the metrics."""
        self.trainer.validate(**kwargs, verbose=False, weights_only=True)

    def test(self, **kwargs: Any) -> None:
        """Test without Lightning's table, since results.json has the metrics."""
        self.trainer.test(**kwargs, verbose=False, weights_only=True)

    def predict(self, **kwargs: Any) -> None:
        """Predict, and run no code from the checkpoint."""
        self.trainer.predict(**kwargs, weights_only=True)

    def export(self, **kwargs: Any) -> None:
        """Export, with the settings for the model card."""
        assert isinstance(self.trainer, ExportTrainer)
        if self._downloaded is not None and kwargs["folder"] is None:  # there is no log folder on this machine
            kwargs["folder"] = str(Path(self.trainer.default_root_dir) / "export")
        self.trainer.export(**kwargs, config=self.results.config)

    def after_fit(self) -> None:
        """Test the final weights if ``test_after_fit`` is set, unless a signal came at the end of the training."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, callbacks.Interruption):
                callback.stop(self.trainer)
        if self.config[self.subcommand].test_after_fit:
            self.test(model=self.model, datamodule=self.datamodule)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning 2.6 would replace the command line's settings by the checkpoint's."""


def main(args: list[str] | None = None) -> None:
    """Run the command line; a wrong setting ends it with one line and status 2."""
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")  # Lightning with torch 2.15
    warnings.filterwarnings("ignore", ".*does not have many workers")  # images are in memory
    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended")  # sweeps and experiments give it
    warnings.filterwarnings("ignore", r"\s*skip_none parameter was deprecated")  # Lightning 2.6 needs it too
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda record: "litlogger" not in record.msg)
    callbacks.watch_launcher()
    try:
        add_folder(Path.cwd())
        RobustCLI(args)
    except (*ONE_LINE, RuntimeError, ValueError, AttributeError, ImportError) as error:
        known = known_error(error) or error
        if not isinstance(known, ONE_LINE):
            raise
        sys.stderr.write(f"error: {' '.join(str(known).split())}\n")
        sys.exit(2)
    except KeyboardInterrupt:  # before the first step, or a second one while the first one's checkpoint is written
        sys.stderr.write("Stopped at once; checkpoints that were complete remain\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
