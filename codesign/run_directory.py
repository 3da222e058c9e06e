"""The directory that a search writes: its configuration, its trials, its state, and the lock on it."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from codesign.describe import differences, digest, versions
from codesign.trial import LOG_NAME, TrialLog, sync_folder

logger = logging.getLogger(__name__)

#: The state of a strategy: arrays and JSON values by name, and nothing else.
State = dict[str, Any]

CONFIG_NAME, STATE_NAME, LOCK_NAME = "config.json", "state.safetensors", "lock"


class RunDirectoryError(ValueError):
    """A run directory that this run must not write."""


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
        """Keep the state after ``told`` trials, in place of the one before."""
        write_atomically(self.path / STATE_NAME, pack_state({**state, "told": told}))

    def restore(self) -> tuple[State, int] | None:
        """The last state kept and its number of trials; None where there is none to rely on."""
        path = self.path / STATE_NAME
        if not path.exists():
            return None
        try:
            state = unpack_state(path.read_bytes())
        except ValueError as error:
            logger.warning("%s cannot be used (%s); the search is replayed from its trials.", path, error)
            return None
        told = int(state.pop("told"))
        if told > len(self.log.trials):
            logger.warning("%s knows %d trials and the log %d; replayed.", path, told, len(self.log.trials))
            return None
        return state, told

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


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, and a crash, sees the old one or the new one, whole."""
    fresh = path.with_name(f".{path.name}.new")
    with open(fresh, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    sync_folder(path.parent)


def pack_state(state: State) -> bytes:
    """A state as one safetensors file: arrays as tensors, the rest as JSON in its header, with a checksum."""
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(value) for name, value in state.items() if isinstance(value, np.ndarray)}
    rest = json.dumps({name: value for name, value in state.items() if name not in arrays}, sort_keys=True)
    # One entry only: safetensors writes several in any order, and equal states are to be equal files.
    return save(arrays, {"state": json.dumps([_checksum(arrays, rest), rest])})


def unpack_state(data: bytes) -> State:
    """The state that `pack_state` packed.

    Raises
    ------
    ValueError
        For bytes that are not one, or are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
        size = int.from_bytes(data[:8], "little")
        checksum, rest = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["state"])
        if checksum != _checksum(arrays, rest):
            raise ValueError("its checksum does not match")
        return {**arrays, **json.loads(rest)}
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"it is damaged: {error}") from None


def _checksum(arrays: Mapping[str, np.ndarray], rest: str) -> str:
    names = sorted(arrays)
    text = json.dumps([names, rest]).encode()
    return digest(*(arrays[name] for name in names), np.frombuffer(text, np.uint8))


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
            raise RunDirectoryError(f"{path.parent}: another search of this process is writing here.")
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._fd, 100).decode(errors="replace").strip()
            os.close(self._fd)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise OSError(error.errno, f"{error.strerror}; this file system has no locks", str(path)) from None
            raise RunDirectoryError(
                f"{path.parent}: one process at a time may write here, but {holder or 'another process'} is writing. "
                "Wait for it, or choose another directory."
            ) from None
        _held.add(self._path)
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"process {os.getpid()} on {os.uname().nodename}\n".encode())

    def release(self) -> None:
        """Give the lock back; more than once does no harm."""
        if self._path in _held:
            _held.discard(self._path)
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
