"""Long experiments cut into jobs: the result of each is kept in one file, several processes may work side by side."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codesign.describe import versions
from codesign.memory import keep_freed_memory
from codesign.run_directory import Lock, RunDirectoryBusy, write_atomically

Work = Callable[[], dict[str, Any]]


class TimeUp(Exception):
    """The time is up in the middle of a job, which goes on from its checkpoint another time."""


class Jobs(ABC):
    """Jobs by name, whose results are values of a JSON file. A concrete experiment gives `jobs`.

    Parameters
    ----------
    path : Path
        The file of results.
    work : Path
        Where checkpoints and locks are.
    about : object
        What determines the results, as a JSON value; kept beside them.
    """

    def __init__(self, path: Path, work: Path, about: Any) -> None:
        self.path, self.work, self.about = path, work, about
        self._end = math.inf
        work.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def jobs(self) -> Iterator[tuple[str, Work]]:
        """Names and work in their order, as far as what they need is known."""

    @property
    def results(self) -> dict[str, Any]:
        """What is known so far, by the name of the job."""
        return json.loads(self.path.read_bytes())["results"] if self.path.exists() else {}

    @property
    def held(self) -> Any:
        """What determined the results that are known; where there are none, what will."""
        known = json.loads(self.path.read_bytes())["preset"] if self.path.exists() else self.about
        return json.loads(json.dumps(known))

    def keep(self, job: str, result: dict[str, Any]) -> None:
        """Add one result to the file, which other processes may write too."""
        with self.locked("results"):
            results = {**self.results, job: {**result, "machine": platform.machine(), "versions": versions()}}
            text = json.dumps({"preset": self.about, "results": dict(sorted(results.items()))}, indent=1)
            write_atomically(self.path, text.encode())

    def checkpoint(self, name: str, suffix: str) -> Path:
        """Where a job keeps what it goes on from: a file of this experiment, with these settings, alone."""
        return self.work / f"{short([name, json.loads(json.dumps(self.about))])}.{suffix}"

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Wait until no other process holds a name, and hold it."""
        while True:
            try:
                lock = Lock(self.work / f"{name}.lock")
                break
            except RunDirectoryBusy:
                time.sleep(1)
        try:
            yield
        finally:
            lock.release()

    def check_time(self) -> None:
        """Stop the job where the time is up; for a job to call after each of its checkpoints.

        Raises
        ------
        TimeUp
        """
        if time.monotonic() > self._end:
            raise TimeUp

    def run(self, minutes: float) -> bool:
        """Do the first job that nobody has done or is doing, again and again; whether all are done.

        Raises
        ------
        ValueError
            Where the file holds results of other settings.
        """
        about = json.loads(json.dumps(self.about))
        if self.path.exists() and json.loads(self.path.read_bytes())["preset"] != about:
            raise ValueError(f"{self.path}: it must hold results of these settings to be added to, but holds others'.")
        keep_freed_memory()
        self._end = time.monotonic() + 60 * minutes
        while time.monotonic() < self._end:
            done, waiting = self.results, 0
            for name, work in self.jobs():
                if name in done:
                    continue
                try:
                    lock = Lock(self.work / f"{short(name)}.lock")
                except RunDirectoryBusy:  # another process is at it
                    waiting += 1
                    continue
                try:
                    if name in self.results:  # done since they were read
                        break
                    print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
                    self._do(name, work)
                except TimeUp:
                    return False
                finally:
                    lock.release()
                break
            else:
                if not waiting:
                    return True
                time.sleep(5)
        return False

    def _do(self, name: str, work: Work) -> None:
        """A job and its times, with those of the processes that the time was up for."""
        path = self.work / f"{short(name)}.times"
        before = json.loads(path.read_bytes()) if path.exists() else {"job_s": 0.0, "process_s": 0.0}
        begun, begun_process = time.perf_counter(), time.process_time()

        def times() -> dict[str, float]:
            return {"job_s": before["job_s"] + time.perf_counter() - begun,
                    "process_s": before["process_s"] + time.process_time() - begun_process}  # fmt: skip

        try:
            self.keep(name, {**work(), **times()})
            path.unlink(missing_ok=True)
        except TimeUp:
            write_atomically(path, json.dumps(times()).encode())
            raise


def parser(description: str, work: str) -> argparse.ArgumentParser:
    """The arguments that all experiments share; ``work`` is the default of ``--work``."""
    shared = argparse.ArgumentParser(description=description)
    shared.add_argument("--work", type=Path, default=Path(work), help="checkpoints and locks (default: %(default)s)")
    shared.add_argument(
        "--minutes", type=float, default=100,
        help="begin no job after so long, and stop one that has checkpoints (default: %(default)s, so that the last "
        "job of a step of 150 has 50)",
    )  # fmt: skip
    shared.add_argument("--threads", type=int, default=1, help="of each process (default: %(default)s)")
    shared.add_argument("--report", action="store_true", help="report what is known and compute nothing")
    return shared


def short(value: Any) -> str:
    """A name of 16 letters for a JSON value."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()
