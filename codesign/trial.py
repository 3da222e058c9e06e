"""An evaluated candidate, and the file that keeps it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codesign.space import Arch

LOG_NAME = "trials.jsonl"


class BrokenLog(ValueError):
    """A log of trials that is damaged before its end."""


@dataclass(frozen=True)
class Trial:
    """A candidate and what was found out about it.

    Parameters
    ----------
    arch : tuple of int
    metrics : mapping of float
        What the accuracy gave, and the totals of the cost report; units are in the names. A candidate over a
        limit is priced but not evaluated, so it has the latter alone.
    violations : mapping of float
        For each limit that is not met, by how much: value / limit - 1 (limit / value - 1 for a limit from
        below). Empty where all are met.
    number : int
        Place in its search, from 0.
    seed : int
        Seed of its search.

    Examples
    --------
    >>> Trial((0, 1), {"error": 0.02, "energy_j": 3e-6}, {"energy_j": 0.5}).feasible
    False
    """

    arch: Arch
    metrics: Mapping[str, float]
    violations: Mapping[str, float] = field(default_factory=dict)
    number: int = 0
    seed: int = 0

    @property
    def feasible(self) -> bool:
        """Whether every limit is met."""
        return not self.violations

    def to_json(self) -> str:
        """One line of JSON; floats keep every bit, and nan and inf are the strings "nan", "inf" and "-inf"."""
        record = {
            "number": self.number,
            "seed": self.seed,
            "arch": list(self.arch),
            "metrics": {name: _to_json(value) for name, value in self.metrics.items()},
            "violations": {name: _to_json(value) for name, value in self.violations.items()},
        }
        return json.dumps(record, allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Trial:
        """The trial that `to_json` wrote.

        Raises
        ------
        ValueError
            For a line that is not one.
        """
        try:
            record: dict[str, Any] = json.loads(line)
            return cls(
                tuple(int(option) for option in record["arch"]),
                {name: float(value) for name, value in record["metrics"].items()},
                {name: float(value) for name, value in record["violations"].items()},
                int(record["number"]),
                int(record["seed"]),
            )
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"Trial: a line must hold arch, metrics, violations, number and seed ({error!r})."
            ) from None


def _to_json(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


class TrialLog:
    """The trials of one search as JSON lines, each on the disk before the next is begun.

    Opening it keeps every whole line and cuts off an end that a killed process or a full disk left torn.

    Parameters
    ----------
    path : path-like
        Made where there is none.

    Attributes
    ----------
    trials : list of Trial
        What the file holds, in order.

    Raises
    ------
    BrokenLog
        Where a line that others follow cannot be read; the file is left as it is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.trials, self._size = _read(self.path) if self.path.exists() else ([], 0)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.ftruncate(self._fd, self._size)
        sync_folder(self.path.parent)

    def append(self, trial: Trial) -> None:
        """Write one trial and wait until the disk has it.

        Raises
        ------
        OSError
            Where the disk does not take it. The file then holds the trials before it, whole.
        """
        line = (trial.to_json() + "\n").encode()
        try:
            written = os.write(self._fd, line)
            if written < len(line):  # a full disk takes a part first and says so at the next write
                os.write(self._fd, line[written:])
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, self._size)
            raise OSError(
                error.errno,
                f"{error.strerror}; trial {trial.number} could not be written, the {len(self.trials)} trials before "
                "it are safe. Make room and resume",
                str(self.path),
            ) from error
        self._size += len(line)
        self.trials.append(trial)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> TrialLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read(path: Path) -> tuple[list[Trial], int]:
    """The whole trials of a log, and the bytes that they take."""
    trials: list[Trial] = []
    size = 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines):
        if not (line.endswith(b"\n") and _is_trial(line)):
            if any(_is_trial(later) for later in lines[number + 1 :]):
                raise BrokenLog(
                    f"{path}: line {number + 1} of {len(lines)} must be a trial, got {line[:60]!r}. The {number} lines "
                    "before it are whole: to go on from them, delete it and what follows."
                )
            break
        trial = Trial.from_json(line)
        if trial.number != number:
            raise BrokenLog(f"{path}: trials must be numbered from 0, got number {trial.number} in line {number + 1}.")
        trials.append(trial)
        size += len(line)
    return trials, size


def _is_trial(line: bytes) -> bool:
    try:
        Trial.from_json(line)
    except ValueError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Put a folder's own entries on the disk, so that a file just made in it outlives a crash."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; what was there before is safe", str(folder)) from error
    finally:
        os.close(fd)


def load_trials(run_dir: str | os.PathLike[str]) -> list[Trial]:
    """The trials of a run, finished or not, in order.

    Parameters
    ----------
    run_dir : path-like
        What ``search(out=...)`` wrote, or its log itself. It may still be being written.

    Raises
    ------
    FileNotFoundError
        Where there is no log.
    BrokenLog
        Where a line that others follow cannot be read.
    """
    path = Path(run_dir)
    if path.is_dir():
        inside = sorted(str(log.parent) for log in path.glob(f"*/{LOG_NAME}"))
        path = path / LOG_NAME
        if not path.exists():
            hint = f"; there are runs in {', '.join(inside)}" if inside else ""
            raise FileNotFoundError(f"{run_dir}: a run directory must hold {LOG_NAME}, got none{hint}.")
    if not path.exists():
        raise FileNotFoundError(f"{run_dir}: there is no such run directory.")
    return _read(path)[0]


def best_trial(trials: Sequence[Trial], objective: str = "error", tie: str | None = "energy_j") -> Trial | None:
    """The feasible trial with the lowest objective.

    Among equals the lowest ``tie`` metric, then the earliest. Trials whose objective is missing or nan do not
    count; None where no trial is left.
    """

    def order(trial: Trial) -> tuple[float, float, int]:
        return trial.metrics[objective], trial.metrics.get(tie or "", 0.0), trial.number

    return min(_evaluated(trials, objective), key=order, default=None)


def _evaluated(trials: Sequence[Trial], objective: str) -> Iterator[Trial]:
    return (t for t in trials if t.feasible and not math.isnan(t.metrics.get(objective, math.nan)))
