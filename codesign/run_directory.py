"""The directory that a search writes: its configuration, its trials, its state, and the lock on it."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from codesign.describe import differences, versions
from codesign.processes import on_first
from codesign.state_file import State, StateFile, pack_state, unpack_state, write_atomically
from codesign.trial import LOG_NAME, TrialLog

__all__ = [
    "Lock", "RunDirectory", "RunDirectoryBusy", "RunDirectoryError", "State", "pack_state", "unpack_state",
    "write_atomically",
]  # fmt: skip

logger = logging.getLogger(__name__)

CONFIG_NAME, STATE_NAME, LOCK_NAME = "config.json", "state.safetensors", "lock"


class RunDirectoryError(ValueError):
    """A run directory that this run must not write."""


class RunDirectoryBusy(RunDirectoryError):
    """One that is being written by somebody else now."""


class RunDirectory:
    """A search on the disk, held by one process at a time.

    Parameters
    ----------
    path : path-like
        Made where there is none.
    config : mapping
        Description of everything that determines the trials.
    resume : bool
        Whether a directory that holds this configuration is gone on with.

    Attributes
    ----------
    log : TrialLog
        Opened when it is first used.

    Raises
    ------
    RunDirectoryError
        Where another process holds the directory, where it holds another configuration, or where it holds this one
        and ``resume`` is false.
    """

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any], resume: bool = False) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(self.path / LOCK_NAME)
        try:
            self._settle(dict(config), resume)
        except BaseException:
            self._lock.release()
            raise

    def _settle(self, config: dict[str, Any], resume: bool) -> None:
        path = self.path / CONFIG_NAME
        if not path.exists():
            if (self.path / LOG_NAME).exists():
                raise RunDirectoryError(f"{self.path}: it holds {LOG_NAME} but no {CONFIG_NAME}; choose another.")
            write_atomically(path, json.dumps({**config, "versions": versions()}, indent=1).encode())
            return
        try:
            there = json.loads(path.read_bytes())
        except ValueError as error:
            raise RunDirectoryError(f"{path}: it must be JSON, but it is damaged ({error}); choose another.") from None
        installed = there.pop("versions", {})
        found = list(differences(there, json.loads(json.dumps(config))))
        if found:
            more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
            raise RunDirectoryError(
                f"{self.path}: it must hold this configuration to be gone on with, but it differs in "
                f"{'; '.join(found[:5])}{more}. Choose another directory."
            )
        if not resume:
            raise RunDirectoryError(
                f"{self.path}: it already holds this run; resume it (resume=True) or choose another directory."
            )
        if installed != versions():
            logger.warning(
                "%s was begun with other versions: %s", self.path, "; ".join(differences(installed, versions()))
            )

    def checkpoint(self, state: State, told: int) -> None:
        """Keep the state after ``told`` trials, and the one before it.

        Raises
        ------
        OSError
            Where the disk does not take it. What was kept before stays, and so does the log.
        """
        self._states.write({**state, "told": told})

    def restore(self) -> tuple[State, int] | None:
        """The last whole state that the log bears out, and its number of trials; None where there is none."""
        for path, state in self._states.read():
            told = int(state.pop("told"))
            if told <= len(self.log.trials):
                return state, told
            logger.warning("%s knows %d trials and the log %d; it is not used.", path, told, len(self.log.trials))
        if self._states.path.exists():
            logger.warning("%s: no state is left to go on from; the search is replayed from its trials.", self.path)
        return None

    @property
    def _states(self) -> StateFile:
        return StateFile(self.path / STATE_NAME)

    @cached_property
    def log(self) -> TrialLog:
        """The log of trials."""
        return TrialLog(self.path / LOG_NAME)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        if "log" in self.__dict__:
            self.log.close()
        self._lock.release()


@contextlib.contextmanager
def run_directory(
    out: str | os.PathLike[str] | None, config: Mapping[str, Any], resume: bool = False
) -> Iterator[RunDirectory | None]:
    """A `RunDirectory` in the first of the processes that run together; None in the others, and without ``out``.

    Raises
    ------
    RunDirectoryError
        In all of them, where the directory must not be written.
    """
    with contextlib.ExitStack() as stack:
        held: list[RunDirectory] = []
        if out is not None:
            on_first(lambda: held.append(stack.enter_context(RunDirectory(out, config, resume))))
        yield held[0] if held else None


_held: set[Path] = set()


class Lock:
    """A lock that the system gives back when its process ends, however it ends.

    A record lock: unlike one by ``flock`` it is not inherited by worker processes, so a worker that outlives a
    killed search does not hold it. Within a process, a set of the paths held does what the record lock does not.
    It needs a POSIX system.
    """

    def __init__(self, path: Path) -> None:
        import fcntl

        self._path = path.resolve()
        if self._path in _held:
            raise RunDirectoryBusy(f"{path.parent}: another search of this process is writing here.")
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._fd, 100).decode(errors="replace").strip()
            os.close(self._fd)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise OSError(error.errno, f"{error.strerror}; this file system has no locks", str(path)) from None
            raise RunDirectoryBusy(
                f"{path.parent}: one process at a time may write here, but {holder or 'another process'} is writing. "
                "Wait for it, or choose another directory."
            ) from None
        _held.add(self._path)
        with contextlib.suppress(OSError):  # who holds it is for people; a full disk is met where it matters
            os.ftruncate(self._fd, 0)
            os.write(self._fd, f"process {os.getpid()} on {os.uname().nodename}\n".encode())

    def release(self) -> None:
        """Give the lock back; more than once does no harm."""
        if self._path in _held:
            _held.discard(self._path)
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
