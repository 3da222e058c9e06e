"""``codesign pareto``: the best trade-offs among the trials of one or several runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from codesign.commands import arguments, output

if TYPE_CHECKING:
    from codesign.trial import Trial

EXAMPLE = """
codesign pareto runs/a runs/b --plot front.png
codesign pareto runs/a --objectives error,energy_j --json
"""
OBJECTIVES = "error,latency_s,energy_j"


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = arguments.command(commands, "pareto", "print and draw the Pareto front of the trials of runs", EXAMPLE)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, or its log of trials")
    parser.add_argument(
        "--objectives", default=OBJECTIVES, metavar="A,B,...", help="metrics to minimise (default: %(default)s)"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the objectives, two or three (png, pdf or svg)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the front over all runs together, and draw it."""
    import numpy as np

    from codesign.pareto import pareto_mask
    from codesign.trial import load_trials

    objectives = [name.strip() for name in args.objectives.split(",")]
    output.check(args.plot, output.PLOT_SUFFIXES)
    if args.plot and len(objectives) not in (2, 3):
        raise ValueError(f"Option --plot: it draws two or three objectives, got {args.objectives!r}; name fewer.")
    runs = {name: load_trials(name) for name in args.runs}
    found = [(name, trial) for name, trials in runs.items() for trial in _comparable(name, trials, objectives)]
    mask = pareto_mask(np.array([[trial.metrics[name] for name in objectives] for _, trial in found]))
    front = sorted((pair for pair, best in zip(found, mask, strict=True) if best), key=_by(objectives[0]))
    if args.json:
        print(json.dumps([{"run": name, **json.loads(trial.to_json())} for name, trial in front], indent=1))
    else:
        rows = [(name, str(t.number), *(f"{t.metrics[key]:.4g}" for key in objectives)) for name, t in front]
        print(output.table(("run", "trial", *objectives), rows))
        print(f"\n{len(front)} of {len(found)} feasible trials are on the front")
    if args.plot:
        from codesign.plots import plot_pareto

        y, x, *color = objectives
        axes = plot_pareto(runs, x=x, y=y, color=color[0] if color else None)
        output.save(axes, args.plot)
    return 0


def _comparable(run: str, trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """The feasible trials, all of which have the objectives."""
    feasible = [trial for trial in trials if trial.feasible]
    if not feasible:
        raise ValueError(f"Run {run!r}: it must have feasible trials, got none among {len(trials)}.")
    for trial in feasible:
        missing = [name for name in objectives if name not in trial.metrics]
        if missing:
            raise ValueError(
                f"Run {run!r}: objectives must be among its metrics {', '.join(trial.metrics)}, got "
                f"{', '.join(missing)}."
            )
    return feasible


def _by(metric: str) -> Callable[[tuple[str, Trial]], float]:
    return lambda pair: pair[1].metrics[metric]
