"""What work takes by the clock and of the processor, over all the processes that were at it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from pathlib import Path
from typing import NamedTuple

from codesign.run_directory import write_atomically

#: Seconds after which what work has taken so far is kept again; no more than these are lost where it is killed.
KEEP_EVERY_S = 10.0


class Spent(NamedTuple):
    """Seconds by the clock, and of the processor."""

    wall_s: float = 0.0
    processor_s: float = 0.0


class Stopwatch:
    """What work takes, kept in a file on the way, so that it adds up where the work is stopped and gone on with.

    Parameters
    ----------
    path : Path
        Of one piece of work, which one process at a time is at.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._ended = path, threading.Event()
        self._before = Spent(**json.loads(path.read_bytes())) if path.exists() else Spent()
        self._begun = self._now = Spent()

    @property
    def spent(self) -> Spent:
        """All so far, that of earlier processes too."""
        wall_s, processor_s = (b + n - a for b, n, a in zip(self._before, self._now, self._begun, strict=True))
        return Spent(wall_s, processor_s)

    def __enter__(self) -> Stopwatch:
        self._begun = self._now = Spent(time.perf_counter(), time.process_time())
        self._thread = threading.Thread(target=self._keep_now_and_then, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._keep()

    def _keep_now_and_then(self) -> None:
        while not self._ended.wait(KEEP_EVERY_S):
            with contextlib.suppress(OSError):  # a full disk is met where it matters
                self._keep()

    def _keep(self) -> None:
        self._now = Spent(time.perf_counter(), time.process_time())
        write_atomically(self._path, json.dumps(self.spent._asdict()).encode())
