"""``codesign`` commands as whole processes, kernels compiled and files in the cache of the system."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from statistics import median

from measure import Report, timed

TARGET_S, RUNS = 1.5, 15
COMMANDS = (
    "--help",
    "hardware list",
    "estimate mobilenet_v2",
    "estimate mobilenet_v2 --bits w4a8 --json",
    "compare mobilenet_v2 --hardware bitfusion,int8-array,int4-array,stripes,loom --equal-area",
    "table resnet20 --bits 2-8 --json",
)


def whole_process(line: str, processor_s: list[float]) -> Callable[[], None]:
    """Runs one command in a new interpreter; its processor time is appended to a list."""

    def run() -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "codesign.cli", *line.split()], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    return run


def main() -> None:
    """Run all of it."""
    report = Report("codesign as a whole process")
    report(f"{'':<14}{'wall time':>9}{'processor':>28}")
    for line in COMMANDS:
        processor_s: list[float] = []
        times = timed(whole_process(line, processor_s), runs=RUNS)
        report(f"codesign {line}")
        goal = f"   {times.median / TARGET_S:.2f} of {TARGET_S:g} s" if line.startswith("estimate") else ""
        report(f"{'':<14}{times!s:<29}{median(processor_s):>6.2f} s{goal}")
    report.close()


if __name__ == "__main__":
    main()
