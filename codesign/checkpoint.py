"""The state of long work on the disk, with what the work is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from codesign.describe import differences
from codesign.run_directory import RunDirectoryError
from codesign.state_file import State, StateFile


class Checkpoint:
    """A `StateFile` whose states can be gone on with by the work that wrote them alone.

    Parameters
    ----------
    path : path-like
        A ``.safetensors`` file.
    config : mapping
        Description of everything that determines the work.
    """

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any]) -> None:
        self.file = StateFile(path)
        self.config = json.loads(json.dumps(config))

    def write(self, state: State) -> None:
        """Keep a state, and the one that was the newest so far.

        Raises
        ------
        OSError
            Where the disk does not take it; the states before it stay.
        """
        self.file.write({**state, "config": self.config})

    def read(self) -> State | None:
        """The newest whole state; None where none was written.

        Raises
        ------
        RunDirectoryError
            Where it belongs to other work.
        ValueError
            Where there are files and none is whole.
        """
        for path, state in self.file.read():
            found = list(differences(state.pop("config", None), self.config))
            if found:
                raise RunDirectoryError(
                    f"{path}: it must hold the state of this work to be gone on with, but it differs in "
                    f"{'; '.join(found[:5])}. Choose another place, or delete it."
                )
            return state
        files = [str(path) for path in (self.file.path, self.file.previous) if path.exists()]
        if files:
            raise ValueError(
                f"Checkpoint: a state must be whole to be gone on with, but {' and '.join(files)} "
                f"{'is' if len(files) == 1 else 'are'} damaged. Delete it to begin again."
            )
        return None
