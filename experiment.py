"""Experiments: ``experiment.py MATRIX.yaml ... [--processes N]`` runs what is missing, and compares all runs.

The same command continues after a stop: finished runs remain, trainings resume from their last checkpoints, and tests
continue after the images that they have measured.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import fmean

from filelock import Timeout

from cli.experiment import Job, Matrix, read_matrix
from cli.job_folder import (
    alone,
    are_noted,
    claim,
    differs_in_code_alone,
    noted_settings,
    process_lock,
    recorded_seconds,
    records_in,
    runs_elsewhere,
    write_json,
)
from cli.processes import signal_name, start, threads_of_each, wait_for
from cli.user_modules import add_folder
from robust.errors import SettingError, require

TRAIN = Path(__file__).with_name("train.py")
STOPPED = "Stopped; the same command continues"


def main(args: list[str] | None = None) -> None:
    """Run the missing runs, or print them; exit with 2 and one line for a wrong setting, with 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("matrices", nargs="+", metavar="matrix", help="YAML file, such as experiments/digits.yaml")
    parser.add_argument("--processes", type=int, default=2, help="runs at the same time; default: 2")
    parser.add_argument("--missing", action="store_true", help="print the missing runs, and run nothing")
    given = parser.parse_args(args)
    try:
        add_folder(Path.cwd())
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
    try:
        sys.exit(max([_run(matrices[path], runner) for path, runner in runners.items()]))
    except KeyboardInterrupt:  # while settings are checked or a report is written
        print(STOPPED, flush=True)
        sys.exit(130)


def _run(matrix: Matrix, runner: Runner) -> int:
    """Run what is missing of a matrix and compare all its runs.

    Returns:
        1 if a run or the report failed, 2 if a setting is wrong, which is found before the first training.
    """
    jobs = matrix.jobs()
    missing = [job for job in jobs if not job.done]
    needed = {name for job in missing for name in job.needs}
    if problem := runner.check(missing):
        sys.stderr.write(f"error: {problem}\n")
        return 2
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
        self._seconds = [(job.name, recorded_seconds(job)) for job in done]
        self._children: set[BaseProcess] = set()
        self._stopped = False

    def check(self, jobs: list[Job]) -> str | None:
        """Read the settings of each run, and return the first run with a wrong one and what is wrong, else None."""
        runs = {job.name: job for job in reversed(jobs)}  # the first seed of each
        with ThreadPoolExecutor(self.processes) as pool, tempfile.TemporaryDirectory() as folder:
            problems = pool.map(lambda job: self._check(job, Path(folder) / job.name), reversed(runs.values()))
            return next((problem for problem in problems if problem), None)

    def _check(self, job: Job, folder: Path) -> str | None:
        folder.mkdir()
        log = folder / "check.log"
        status = wait_for(start(TRAIN, job.check(), log, self.threads, folder / "lock"))
        return None if status == 0 else f"{job.name}: {_last_line(log, status).removeprefix('error: ')}"

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
                print(STOPPED, flush=True)
                sys.exit(130)
        for job in waiting:
            print(f"{job.name} seed {job.seed}: not run, it needs {', '.join(job.needs)}", flush=True)
        return len(failed)

    def _next(self, waiting: list[Job], unfinished: list[Job]) -> Job | None:
        """Return the next job to start: of the first seed, the longest by known times, so that no long job is last."""
        absent = {job.name for job in [*waiting, *unfinished] if not job.evaluation}
        ready = [job for job in waiting if not absent.intersection(job.needs)]
        ready = [job for job in ready if not runs_elsewhere(job)] or ready
        first = [job for job in ready if job.seed == ready[0].seed]
        return max(first, key=lambda job: fmean(self._known(job) or [0.0]), default=None)

    def _run(self, job: Job) -> str | None:
        """Train and test, after another process that runs the job; return the reason for a failure, else None."""
        try:
            if runs_elsewhere(job):
                print(f"{job.name} seed {job.seed}: another process runs in {job.folder}; waiting for it", flush=True)
            while not self._stopped:
                with suppress(Timeout), alone(job):
                    return None if job.evaluation and job.done else self._run_alone(job)
            return "stopped"
        except (SettingError, OSError) as error:
            return f"error: {error}"

    def _run_alone(self, job: Job) -> str | None:
        began = time.monotonic()
        claim(job)
        trained = "fit" in records_in(job.folder)
        if not trained and (error := self._call(job, job.fit())):
            return error
        if job.evaluation:
            if "test" not in records_in(job.folder) and (error := self._call(job, job.test())):
                return error
            job.result.parent.mkdir(parents=True, exist_ok=True)
            write_json(job.result, records_in(job.folder))
        # for a test whose training had finished before, the record has the time of the training, too
        if job.evaluation or not trained:
            self._seconds.append((job.name, recorded_seconds(job) if job.evaluation else time.monotonic() - began))
        return None

    def _call(self, job: Job, arguments: list[str]) -> str | None:
        log = job.folder / f"{arguments[0]}.log"
        if self._stopped:
            return "stopped"
        child = start(TRAIN, arguments, log, self.threads, process_lock(job))
        self._children.add(child)
        status = wait_for(child)
        self._children.discard(child)
        if status == 0:
            return None
        return f"{_last_line(log, status)} ({log})"

    def _remaining(self, jobs: Sequence[Job]) -> str:
        """Return the number of remaining jobs and their time, estimated from other seeds of a run, else from all."""
        if not jobs or not self._seconds:
            return f"{len(jobs)} remaining"
        mean = fmean(seconds for _, seconds in self._seconds)
        total = sum(fmean(self._known(job) or [mean]) for job in jobs)
        return f"{len(jobs)} remaining, about {total / self.processes / 60:.0f} min"

    def _known(self, job: Job) -> list[float]:
        """Seconds of other seeds of the same run."""
        return [seconds for name, seconds in self._seconds if name == job.name]


def _last_line(log: Path, status: int) -> str:
    """What a failed process says: its last line, or the signal that ended it."""
    if status < 0:
        return f"ended by {signal_name(-status)} (a lack of memory ends a process by SIGKILL)"
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"status {status}"


def _print_outdated(jobs: list[Job]) -> None:
    """Print the finished runs whose settings, or files of the user's that these name, have changed since."""
    for job in jobs:
        noted, settings = noted_settings(job), job.settings()
        changed = [part for part in noted or {} if noted and not are_noted(settings[part], noted[part])]
        if noted is None or not changed:
            continue
        folder = f" and {job.folder}" if "fit" in changed else ""
        code = all(differs_in_code_alone(noted[part], settings[part]) for part in changed)
        what = "is of an earlier version of a file of yours" if code else "has other settings"
        print(f"{job.name} seed {job.seed}: {job.result} {what}; delete it{folder} to run this again", flush=True)


if __name__ == "__main__":
    main()
