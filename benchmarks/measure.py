"""What the benchmarks share: timing, the machine in words, and a report that is printed and kept."""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple


class Times(NamedTuple):
    """Times of several runs after a warm-up, in seconds."""

    median: float
    low: float
    high: float
    processor: float  #: median processor time of all threads, which other work on the machine hardly changes

    def __str__(self) -> str:
        return f"{seconds(self.median):>9} ({seconds(self.low)} .. {seconds(self.high)})"


def timed(work: Callable[[], Any], runs: int = 30, least_s: float = 0.0) -> Times:
    """Time a function.

    Parameters
    ----------
    work : callable
        Run once unmeasured, so that it is compiled and its data are in reach.
    runs : int
    least_s : float
        Each run repeats short work until it takes about this long, and counts the mean.
    """
    work()
    repeats = 1
    if least_s:
        start = time.perf_counter()
        work()
        repeats = max(1, round(least_s / (time.perf_counter() - start)))
    times, processor = [], []
    gc.collect()
    for _ in range(runs):
        start, start_processor = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            work()
        times.append((time.perf_counter() - start) / repeats)
        processor.append((time.process_time() - start_processor) / repeats)
    return Times(statistics.median(times), min(times), max(times), statistics.median(processor))


class Report:
    """Lines that are printed as they come and, with ``--out FILE``, written to a file at the end."""

    def __init__(self, title: str, *packages: str) -> None:
        parser = argparse.ArgumentParser(description=title)
        parser.add_argument("--out", type=Path, help="also write the report here")
        self.out = parser.parse_args().out
        self.lines: list[str] = []
        load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
        packages = ("numpy", "numba", *packages)
        self(f"{title}\n")
        self(f"command   python {Path(sys.argv[0]).parent.name}/{Path(sys.argv[0]).name}")
        self(f"machine   {os.cpu_count()} cores of {_processor()}, shared with other work; load average {load}")
        self(f"versions  Python {platform.python_version()}, " + ", ".join(f"{p} {version(p)}" for p in packages))
        self("times     median (min .. max) of wall time after a warm-up, kernels compiled\n")

    def __call__(self, line: str = "") -> None:
        print(line, flush=True)
        self.lines.append(line)

    def close(self) -> None:
        """The load at the end, and the file."""
        self(f"\nload average at the end {', '.join(f'{x:.1f}' for x in os.getloadavg())}")
        if self.out:
            self.out.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


def _processor() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def seconds(value: float) -> str:
    """A time with its unit."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"
