"""The state of long work on the disk, and the one before it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codesign.describe import differences
from codesign.run_directory import RunDirectoryError, State, pack_state, unpack_state, write_atomically
from codesign.trial import sync_folder

logger = logging.getLogger(__name__)


class Checkpoint:
    """A file that always holds a whole state, whenever the process is killed, and beside it the state before.

    Parameters
    ----------
    path : path-like
        A safetensors file; the one before it is ``.NAME.before`` in the same folder.
    config : mapping
        Description of everything that determines the work. A state of other work is refused.
    """

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.before = self.path.with_name(f".{self.path.name}.before")
        self.config = json.loads(json.dumps(config))

    def write(self, state: State) -> None:
        """Keep a state, and the one that was the newest so far.

        Raises
        ------
        OSError
            Where the disk does not take it; the states before it stay.
        """
        fresh = self.path.with_name(f".{self.path.name}.next")
        try:
            write_atomically(fresh, pack_state({**state, "config": self.config}))
        except OSError as error:
            fresh.with_name(f".{fresh.name}.new").unlink(missing_ok=True)
            raise OSError(
                error.errno, f"{error.strerror}; the state before it is safe. Make room and go on", str(self.path)
            ) from error
        if self.path.exists():
            os.replace(self.path, self.before)
        os.replace(fresh, self.path)
        sync_folder(self.path.parent)

    def read(self) -> State | None:
        """The newest whole state; None where none was written.

        Raises
        ------
        RunDirectoryError
            Where it belongs to other work.
        ValueError
            Where there are files and none is whole.
        """
        damaged = []
        for path in (self.path, self.before):
            if not path.exists():
                continue
            try:
                state = unpack_state(path.read_bytes())
            except ValueError as error:
                logger.warning("%s cannot be used (%s); going on from the state before it.", path, error)
                damaged.append(path)
                continue
            found = list(differences(state.pop("config", None), self.config))
            if found:
                raise RunDirectoryError(
                    f"{path}: it must hold the state of this work to be gone on with, but it differs in "
                    f"{'; '.join(found[:5])}. Choose another place, or delete it."
                )
            return state
        if damaged:
            raise ValueError(
                f"{self.path}: a state must be whole to be gone on with, but {' and '.join(map(str, damaged))} are "
                "damaged. Delete them to begin again."
            )
        return None
