"""Sweeps: ``sweep.py STUDY.yaml [--processes N]`` tries settings of a training, and prints the Pareto front.

The same command continues a stopped sweep. Trials that were running start again.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from filelock import FileLock, Timeout

import train
from cli.composition import content
from cli.config_files import as_argument
from cli.processes import end_with_parent, signal_name
from cli.pruning import current
from cli.study import StudyFile, read_study
from robust.errors import GradientError, NonFiniteLogitsError, NonFiniteLossError, SettingError, require

if TYPE_CHECKING:
    from multiprocessing.synchronize import Lock

    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend
except ImportError:
    sys.exit("error: optuna: not installed; run uv sync, or pip install optuna")


def main(args: list[str] | None = None) -> None:
    """Run or continue a sweep; a wrong setting ends it in one line and status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="YAML file, such as configs/sweeps/r2_weight.yaml")
    parser.add_argument("--processes", type=int, default=1, help="trials that run at the same time")
    given = parser.parse_args(args)
    try:
        study_file = read_study(given.study)
        if given.processes < 1:
            raise SettingError("processes", given.processes, "give at least 1")
    except (SettingError, ValueError) as error:
        _exit(error)
    folder = Path(study_file.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sweep.lock").touch()
    except OSError as error:
        reason = f"it cannot be written ({error.strerror}); give another folder"
        raise SettingError("folder", study_file.folder, reason) from None
    try:
        with FileLock(folder / "sweep.lock", timeout=0):
            run(study_file, given.processes)
    except Timeout:
        remedy = "another process runs a sweep in it; wait for its end, or give another folder"
        raise SettingError("folder", study_file.folder, remedy) from None


def run(study_file: StudyFile, processes: int) -> None:
    """Run or continue a sweep that no other process runs."""
    study = open_study(study_file)
    restart_stopped(study)
    queue_grid(study, study_file)
    seen = len(study.get_trials(deepcopy=False))
    context = get_context("spawn")
    lock = context.Lock()
    if processes == 1:
        run_trials(study_file, lock, 0, seen)
    else:
        arguments = [(study_file, lock, worker, seen) for worker in range(processes)]
        workers = [context.Process(target=_work, args=each) for each in arguments]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        for worker in workers:
            if worker.exitcode and worker.exitcode < 0:
                sys.stderr.write(
                    f"error: a process was ended by {signal_name(-worker.exitcode)}; the same command continues\n"
                )
        if any(worker.exitcode for worker in workers):
            sys.exit(2)
    report(study, study_file)


def _work(study_file: StudyFile, lock: Lock, worker: int, seen: int) -> None:
    """Run trials in a process of its own, and end with an error in one line."""
    end_with_parent()
    try:
        run_trials(study_file, lock, worker, seen)
    except SettingError as error:
        _exit(error)
    except KeyboardInterrupt:  # the parent says so
        sys.exit(130)


def open_study(study_file: StudyFile, seed: int = 0) -> Study:
    """The study in its folder, created if absent; ``seed`` is the seed of its draws.

    Raises:
        SettingError: if the folder has another sweep.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = JournalFileBackend(str(Path(study_file.folder) / "study.journal"))
    storage = optuna.storages.JournalStorage(file)
    known = {each.study_name for each in optuna.get_all_study_summaries(storage)}
    study = optuna.create_study(
        storage=storage,
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner() if study_file.prune else optuna.pruners.NopPruner(),
        study_name="sweep",
        directions=list(study_file.objectives.values()),
        load_if_exists=True,
    )
    settings = {name: value for name, value in asdict(study_file).items() if name not in ("folder", "trials")}
    settings["config"] = content(study_file.config)
    if "sweep" in known:
        directions = [each.name.lower() for each in study.directions]
        older = {"objectives": dict(zip(study.user_attrs.get("objectives", []), directions, strict=False))}
        noted = study.user_attrs.get("settings", settings | older)
        changed = [name for name in settings if noted[name] != settings[name]]
        remedy = f"it has a sweep with other {', '.join(changed)}; give another folder, or delete this one"
        require(not changed, "folder", study_file.folder, remedy)
    study.set_user_attr("settings", settings)
    return study


def restart_stopped(study: Study) -> None:
    """Queue again the settings of the trials that were running when the sweep was stopped."""
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        # a trial that was queued may have stopped before it took all of its settings
        study.enqueue_trial(trial.system_attrs.get("fixed_params", trial.params))


def queue_grid(study: Study, study_file: StudyFile) -> None:
    """Queue the combinations of a grid that no trial has, or whose trials failed."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state != optuna.trial.TrialState.FAIL]
    known = [trial.system_attrs.get("fixed_params", trial.params) for trial in trials]
    for combination in study_file.grid():
        if combination not in known:
            study.enqueue_trial(combination)


def run_trials(study_file: StudyFile, lock: Lock, worker: int, seen: int) -> None:
    """Run trials until the study has enough of them.

    Args:
        study_file: settings of the sweep.
        lock: lock that is held while a new trial is created.
        worker: number of this process.
        seen: number of trials when the sweep started, by which a continued sweep draws other settings than before.
    """
    study = open_study(study_file, worker + _MOST_WORKERS * seen)
    while (trial := next_trial(study, study_file, lock)) is not None:
        try:
            values = objectives(study_file, trial, study_file.suggest(trial))
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        except DivergedError as error:
            trial.set_user_attr("diverged", str(error))
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt) or (
                isinstance(error, SystemExit) and error.code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
            )
            if not stopped:  # a stopped trial stays a running one, which the same command starts again
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise
        else:
            study.tell(trial, values)


def next_trial(study: Study, study_file: StudyFile, lock: Lock) -> Trial | None:
    """A new trial; None if there are enough."""
    with lock:
        enough = len(study.get_trials(deepcopy=False, states=_COUNTED)) >= study_file.count()
        return None if enough else study.ask()


_MOST_WORKERS = 1000  # for these the seeds of workers differ
_FINISHED = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
_COUNTED = (*_FINISHED, optuna.trial.TrialState.RUNNING)


class DivergedError(RuntimeError):
    """A loss, logits or an objective of a trial are NaN or infinite."""


def objectives(study_file: StudyFile, trial: Trial, settings: dict[str, Any]) -> list[float]:
    """Mean of each objective over the seeds; the values of single seeds become an attribute of the trial.

    Raises:
        DivergedError: if a training diverges.
        SettingError: if a training does not log an objective.
    """
    measured: list[list[float]] = []
    for seed in study_file.seeds:
        folder = Path(study_file.folder) / f"trial_{trial.number}" / f"seed_{seed}"
        arguments = ["fit", *(f"--config={path}" for path in study_file.config)]
        arguments += [as_argument(*each) for each in settings.items()]
        arguments += [f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}", "--trainer.logger=false"]
        arguments += [f"--checkpoint.dirpath={folder / 'checkpoints'}", "--test_after_fit=false"]
        arguments += ["--trainer.callbacks+=cli.pruning.Objectives"]
        if study_file.prune and seed == study_file.seeds[0]:
            arguments.append("--trainer.callbacks+=cli.pruning.Pruning")
        token = current.set((trial, list(study_file.objectives)))
        try:
            train.main(arguments)
        except SystemExit as end:
            if isinstance(end.__context__, NonFiniteLossError | NonFiniteLogitsError | GradientError):
                raise DivergedError(f"seed {seed}: {end.__context__}") from end
            raise
        finally:
            current.reset(token)
        record = json.loads((folder / "results.json").read_text())["fit"]
        metrics = record["metrics"]
        for name in study_file.objectives:
            if value := record["not_finite"].get(f"metrics.{name}"):
                raise DivergedError(f"seed {seed}: {name} is {value}")
        missing = [name for name in study_file.objectives if metrics.get(name) is None]
        if missing:
            logged = ", ".join(sorted(name for name in metrics if name.startswith("val/")))
            raise SettingError(
                "objectives", missing[0], f"the training does not log it at its end; it logs {logged or 'no val/...'}"
            )
        measured.append([metrics[name] for name in study_file.objectives])
    trial.set_user_attr("by_seed", measured)
    means = (statistics.fmean(column) for column in zip(*measured, strict=True))
    return [float(f"{mean:.6g}") for mean in means]  # equal counts may differ in their last digits, and so in the front


def report(study: Study, study_file: StudyFile) -> None:
    """Print the trials of the Pareto front, and write all trials to ``trials.json``."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state != optuna.trial.TrialState.WAITING]
    best = {trial.number for trial in study.best_trials}
    rows = [
        {
            "trial": trial.number,
            "state": "diverged" if "diverged" in trial.user_attrs else trial.state.name.lower(),
            "settings": trial.params,
            "objectives": dict(zip(study_file.objectives, trial.values or [], strict=False)),
            "by_seed": trial.user_attrs.get("by_seed"),
            "best": trial.number in best,
        }
        for trial in trials
    ]
    path = Path(study_file.folder) / "trials.json"
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    finished = [trial for trial in trials if trial.state in _FINISHED]
    failed = [f"trial {trial.number}" for trial in trials if trial.state == optuna.trial.TrialState.FAIL]
    print(f"Best of {len(finished)} trials ({', '.join(f'{d} {n}' for n, d in study_file.objectives.items())}):")
    for trial in sorted(study.best_trials, key=_values):
        shown = ", ".join(
            f"{name} {value:.4g}" for name, value in zip(study_file.objectives, _values(trial), strict=True)
        )
        chosen = " ".join(as_argument(name, value) for name, value in trial.params.items())
        print(f"  trial {trial.number}: {shown}: {chosen}")
    for trial in finished:
        if "diverged" in trial.user_attrs:
            print(f"Diverged: trial {trial.number}: {trial.user_attrs['diverged']}")
    if failed:
        print(f"Failed or stopped: {', '.join(failed)}")
    print(f"Trials: {path}")


def _exit(error: Exception) -> NoReturn:
    sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
    sys.exit(2)


def _values(trial: FrozenTrial) -> list[float]:
    return trial.values or []


if __name__ == "__main__":
    try:
        main()
    except SettingError as error:
        _exit(error)
    except KeyboardInterrupt:
        print("Stopped; the same command continues", flush=True)
        sys.exit(130)
