"""Experiments: ``experiment.py MATRIX.yaml ... [--processes N]`` runs what is missing, and compares all runs.

The same command continues after a stop: finished runs remain, trainings resume from their last checkpoints, and tests
continue after the images that they have measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import fmean
from typing import Any

from filelock import FileLock, Timeout

from cli.experiment import Job, Matrix, read_matrix
from cli.processes import start, threads_of_each, wait_for
from robust.errors import SettingError, require

TRAIN = Path(__file__).with_name("train.py")


def main(args: list[str] | None = None) -> None:
    """Run the missing runs, or print them; exit with 2 and one line for a wrong setting, with 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("matrices", nargs="+", metavar="matrix", help="YAML file, such as experiments/digits.yaml")
    parser.add_argument("--processes", type=int, default=2, help="runs at the same time; default: 2")
    parser.add_argument("--missing", action="store_true", help="print the missing runs, and run nothing")
    given = parser.parse_args(args)
    try:
        matrices = {path: read_matrix(path) for path in given.matrices}
        require(given.processes >= 1, "processes", given.processes, "give at least 1")
        runners = {}
        for path, matrix in matrices.items():
            done = [job for job in matrix.jobs() if job.done]
            _print_outdated(done)
            runners[path] = Runner(given.processes, done)
    except (SettingError, ValueError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)
    if given.missing:
        for path, matrix in matrices.items():
            before = f"{path}: " if len(matrices) > 1 else ""
            missing = [f"{before}{job.name} seed {job.seed}" for job in matrix.jobs() if not job.done]
            print("\n".join(missing) or f"{before}nothing missing")
        return
    sys.exit(max([_run(matrices[path], runner) for path, runner in runners.items()]))


def _run(matrix: Matrix, runner: Runner) -> int:
    """Run what is missing of a matrix and compare all its runs; return 1 if a run or the report failed."""
    jobs = matrix.jobs()
    missing = [job for job in jobs if not job.done]
    needed = {name for job in missing for name in job.needs}
    if runner.run([*(job for job in matrix.prepared() if job.name in needed), *missing]):
        return 1
    return _report(Path(matrix.folder), [str(job.result) for job in jobs])


def _report(folder: Path, results: list[str]) -> int:
    """Compare the runs; return 1 after one line on stderr if a package that only the report needs is missing."""
    try:
        import report
    except ModuleNotFoundError as error:
        remedy = "install the packages of the group report in pyproject.toml; the same command then writes it"
        sys.stderr.write(f"error: all runs are done, but {error.name}, which the report needs, is missing: {remedy}\n")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    return report.main([*results, "--output", *(str(folder / f"report{ending}") for ending in report.FORMATS)])


class Runner:
    """Runs jobs in processes of their own.

    Args:
        processes: number of jobs at the same time.
        done: finished jobs, whose times give the first estimates of the remaining time.
    """

    def __init__(self, processes: int, done: list[Job]) -> None:
        self.processes = processes
        self.threads = threads_of_each(processes)
        self._seconds = [(job.name, _recorded_seconds(job)) for job in done]
        self._children: set[BaseProcess] = set()
        self._stopped = False

    def run(self, jobs: list[Job]) -> int:
        """Run jobs, print each with an estimate of the remaining time, and return the number of failures.

        Args:
            jobs: jobs to run; a training that other jobs need comes before these.
        """
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        waiting, failed, running = list(jobs), list[Job](), dict[Future[str | None], Job]()
        with ThreadPoolExecutor(self.processes) as pool:
            try:
                while waiting or running:
                    while len(running) < self.processes and (job := self._next(waiting, [*running.values(), *failed])):
                        waiting.remove(job)
                        running[pool.submit(self._run, job)] = job
                    if not running:  # all waiting jobs need a training that failed
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        job, error = running.pop(future), future.result()
                        failed += [job] if error else []
                        state = "done" if error is None else f"failed: {error}"
                        remaining = self._remaining([*running.values(), *waiting])
                        print(f"{job.name} seed {job.seed}: {state}; {remaining}", flush=True)
            except KeyboardInterrupt:
                self._stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                for child in list(self._children):
                    child.terminate()  # a training writes a checkpoint first
                print("Stopped; the same command continues", flush=True)
                sys.exit(130)
        for job in waiting:
            print(f"{job.name} seed {job.seed}: not run, it needs {', '.join(job.needs)}", flush=True)
        return len(failed)

    def _next(self, waiting: list[Job], unfinished: list[Job]) -> Job | None:
        """Return the next job to start: of the first seed, the longest by known times, so that no long job is last."""
        absent = {job.name for job in [*waiting, *unfinished] if not job.evaluation}
        ready = [job for job in waiting if not absent.intersection(job.needs)]
        ready = [job for job in ready if not _runs_elsewhere(job)] or ready
        first = [job for job in ready if job.seed == ready[0].seed]
        return max(first, key=lambda job: fmean(self._known(job) or [0.0]), default=None)

    def _run(self, job: Job) -> str | None:
        """Train and test, after another process that runs the job; return the reason for a failure, else None."""
        try:
            if _runs_elsewhere(job):
                print(f"{job.name} seed {job.seed}: another process runs in {job.folder}; waiting for it", flush=True)
            while not self._stopped:
                with suppress(Timeout), FileLock(_lock(job), timeout=1), FileLock(_process_lock(job), timeout=1) as own:
                    own.release()  # no process of a runner that was killed is still there; the next process takes it
                    return None if job.evaluation and job.done else self._run_alone(job)
            return "stopped"
        except (SettingError, OSError) as error:
            return f"error: {error}"

    def _run_alone(self, job: Job) -> str | None:
        began = time.monotonic()
        _claim(job)
        trained = "fit" in _records(job.folder)
        if not trained and (error := self._call(job, job.fit())):
            return error
        if job.evaluation:
            if "test" not in _records(job.folder) and (error := self._call(job, job.test())):
                return error
            job.result.parent.mkdir(parents=True, exist_ok=True)
            _write(job.result, _records(job.folder))
        # for a test whose training had finished before, the record has the time of the training, too
        if job.evaluation or not trained:
            self._seconds.append((job.name, _recorded_seconds(job) if job.evaluation else time.monotonic() - began))
        return None

    def _call(self, job: Job, arguments: list[str]) -> str | None:
        log = job.folder / f"{arguments[0]}.log"
        if self._stopped:
            return "stopped"
        child = start(TRAIN, arguments, log, self.threads, _process_lock(job))
        self._children.add(child)
        status = wait_for(child)
        self._children.discard(child)
        if status == 0:
            return None
        lines = log.read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else f'status {status}'} ({log})"

    def _remaining(self, jobs: Sequence[Job]) -> str:
        """Return the number of remaining jobs and their time, estimated from other seeds of a run, else from all."""
        if not jobs or not self._seconds:
            return f"{len(jobs)} left"
        mean = fmean(seconds for _, seconds in self._seconds)
        total = sum(fmean(self._known(job) or [mean]) for job in jobs)
        return f"{len(jobs)} left, about {total / self.processes / 60:.0f} min"

    def _known(self, job: Job) -> list[float]:
        """Seconds of other seeds of the same run."""
        return [seconds for name, seconds in self._seconds if name == job.name]


def _lock(job: Job) -> Path:
    """The file that is locked while a runner runs the job."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    return job.folder.with_suffix(".lock")


def _process_lock(job: Job) -> Path:
    """The file that the job's training or test locks, which ends a moment later than a runner that is killed."""
    return _lock(job).with_suffix(".process.lock")


def _runs_elsewhere(job: Job) -> bool:
    """Whether another process, or another thread of this one, runs the job."""
    try:
        with FileLock(_lock(job), timeout=0), FileLock(_process_lock(job), timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # the run itself reports it
        return False


def _claim(job: Job) -> None:
    """Note the run's settings in its log folder, so that another run's records are not used for this run.

    The files of a training that stopped before its first checkpoint are deleted. If the settings of the test have
    changed, its record and its saved results are deleted, so that it runs again.

    Raises:
        SettingError: if the folder holds a training with other settings, or other files.
    """
    settings, noted, folder = job.settings(), _noted(job), str(job.folder)
    if noted is None:
        names = [path.name for path in job.folder.iterdir()] if job.folder.is_dir() else []
        own = all(name.startswith(job.note.name) for name in names)  # a stop may have interrupted the writing of a note
        remedy = "it holds files that are not of a matrix' run; give another folder, or move them away"
        require(own, "folder", folder, remedy)
        noted = settings
    remedy = f"it holds a training with other settings ({job.note}); give another folder, or delete this one"
    require(noted["fit"] == settings["fit"], "folder", folder, remedy)
    if not job.checkpoint.is_file():
        _require_unfinished(job)
        _empty(job.folder, job.note)
    if noted["test"] != settings["test"]:
        records = _records(job.folder)
        if (job.folder / "test").is_dir():
            shutil.rmtree(job.folder / "test")
        if records.pop("test", None):
            _write(job.folder / "results.json", records)
    _write(job.note, settings)


def _noted(job: Job) -> dict[str, Any] | None:
    """The settings of the training and the test in the log folder; None if there is no note."""
    if not job.note.is_file():
        return None
    try:
        noted = json.loads(job.note.read_text(encoding="utf-8"))
        return {name: noted[name] for name in ("fit", "test")}
    except (ValueError, KeyError, TypeError):
        remedy = "it does not say with which settings the folder's training ran; delete the folder to run this again"
        raise SettingError("folder", str(job.note), remedy) from None


def _require_unfinished(job: Job) -> None:
    """Refuse a log folder without the last checkpoint that holds more than the files of a stopped training."""
    finished = "fit" in _records(job.folder)
    remedy = f"its training has ended, but {job.checkpoint}, which the test needs, is missing; delete it to train again"
    require(not finished, "folder", str(job.folder), remedy)
    own = job.checkpoint.parent
    others = [path for path in job.folder.rglob("*.ckpt") if path.parent != own]
    remedy = f"it holds {others[0] if others else ''}, of another training; give another folder, or move it away"
    require(not others, "folder", str(job.folder), remedy)


def _empty(folder: Path, note: Path) -> None:
    """Delete the contents of a folder except its note; the folder may be a symbolic link or absent."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path == note:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _print_outdated(jobs: list[Job]) -> None:
    """Print the finished runs whose settings have changed in the matrix since."""
    for job in jobs:
        noted = _noted(job)
        if noted is None or noted == (settings := job.settings()):
            continue
        folder = f" and {job.folder}" if noted["fit"] != settings["fit"] else ""
        what = f"{job.name} seed {job.seed}: {job.result} has other settings"
        print(f"{what}; delete it{folder} to run this again", flush=True)


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically: a process that is killed leaves the previous file."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())  # without this, a crash may leave an empty file of the final name
    unfinished.replace(path)


def _records(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (ValueError, TypeError):
        raise SettingError(
            "folder", str(path), "it is no record of a run; delete the folder to run this again"
        ) from None


def _recorded_seconds(job: Job) -> float:
    try:
        records = json.loads(job.result.read_text(encoding="utf-8"))
        return sum(float(record["wall_time"]) for record in records.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SettingError(
            "results", str(job.result), "it is no record of a run; delete it to run this again"
        ) from None


if __name__ == "__main__":
    main()
