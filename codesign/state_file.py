"""A state on the disk: written whole or not at all, checked when it is read, with the one before it beside it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from codesign.describe import digest
from codesign.trial import sync_folder

logger = logging.getLogger(__name__)

#: What a strategy or a training knows: arrays and JSON values by name, and nothing else.
State = dict[str, Any]


class StateFile:
    """A file that holds the newest state, and beside it one that holds the state before.

    Whenever the process is killed, one of them is whole; it has no pickle in it.

    Parameters
    ----------
    path : path-like
        A ``.safetensors`` file; the one before it is ``NAME.previous.safetensors``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.previous = self.path.with_name(f"{self.path.stem}.previous{self.path.suffix}")

    def write(self, state: State) -> None:
        """Keep a state, and the one that was the newest so far.

        Raises
        ------
        OSError
            Where the disk does not take it. The states before it stay.
        """
        fresh = _write_beside(self.path, pack_state(state))
        if self.path.exists():
            os.replace(self.path, self.previous)
        os.replace(fresh, self.path)
        sync_folder(self.path.parent)

    def read(self) -> Iterator[tuple[Path, State]]:
        """The whole states, the newest first, each with the file that it is from; damaged ones are warned of."""
        for path in (self.path, self.previous):
            if path.exists():
                try:
                    yield path, unpack_state(path.read_bytes())
                except ValueError as error:
                    logger.warning("%s cannot be used (%s); an earlier state is taken.", path, error)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, and a crash, sees the old one or the new one, whole.

    Raises
    ------
    OSError
        Where the disk does not take it. The old file stays.
    """
    os.replace(_write_beside(path, data), path)
    sync_folder(path.parent)


def _write_beside(path: Path, data: bytes) -> Path:
    """Write data to a new file next to ``path`` and wait until the disk has it."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with open(fresh, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise OSError(
            error.errno, f"{error.strerror}; it could not be written, what was there before is safe", str(path)
        ) from error
    return fresh


def pack_state(state: State) -> bytes:
    """A state as one safetensors file: arrays as tensors, the rest as JSON in its header, with a checksum."""
    from safetensors.numpy import save

    arrays = {name: np.asarray(value, order="C") for name, value in state.items() if isinstance(value, np.ndarray)}
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
