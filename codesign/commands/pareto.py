"""``codesign pareto``: the best trade-offs among the trials of one or several runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.commands import arguments, output

if TYPE_CHECKING:
    from codesign.fronts import Comparison

EXAMPLE = """
codesign pareto runs/a runs/b --plot front.png
codesign pareto runs/front --objectives error,energy_j --color latency_s --plot p.png
codesign pareto runs/seed* --reference 0.9,2e-3,4e-5 --json front.json
"""
#: Rows of the front that are printed, where it is long; --json has all.
MOST_ROWS = 40


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = arguments.command(
        commands, "pareto", "print and draw the Pareto front of the trials of runs, and their hypervolumes", EXAMPLE,
        json=False,
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, its log, or a directory of runs")
    parser.add_argument(
        "--objectives", metavar="A,B,...", help="metrics to compare (default: error,latency_s,energy_j)"
    )
    parser.add_argument(
        "--reference", metavar="X,Y,...",
        help="corner that hypervolumes are measured up to (default: the worst of all trials)",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="FILE", help="draw the objectives, two or three (png, pdf or svg)")
    parser.add_argument("--color", metavar="METRIC", help="with two objectives: a third metric, drawn as colour")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write JSON to a file, or print it instead of the tables"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the front over all runs together, and draw it."""
    from codesign.fronts import Comparison, gather

    objectives = [name.strip() for name in args.objectives.split(",")] if args.objectives else None
    output.check(args.plot, output.PLOT_SUFFIXES)
    if args.json not in (None, "-"):
        output.check(args.json, (".json",))
    _check_drawable(args.plot, objectives)
    comparison = Comparison.of(gather(args.runs), objectives, _reference(args.reference))
    _check_drawable(args.plot, comparison.objectives)
    if args.color and len(comparison.objectives) != 2:
        raise ValueError(
            f"Option --color: it goes with two objectives, got {', '.join(comparison.objectives)}; name two."
        )
    text = json.dumps(comparison.record(), indent=1)
    if args.json == "-":
        print(text)
    else:
        if args.json:
            Path(args.json).write_text(text + "\n", encoding="utf-8")
        print(comparison_text(comparison))
    if args.plot:
        draw(comparison, args.plot, args.color)
    return 0


def _check_drawable(plot: str | None, objectives: Sequence[str] | None) -> None:
    """Refuse to draw more or fewer objectives than fit a plane."""
    if plot and objectives and len(objectives) not in (2, 3):
        raise ValueError(
            f"Option --plot: it draws two or three objectives, got {','.join(objectives)!r}; name as many."
        )


def _reference(text: str | None) -> list[float] | None:
    """The numbers of a point."""
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"Option --reference: it must be numbers such as 0.9,2e-3, got {text!r}.") from None


def comparison_text(comparison: Comparison) -> str:
    """The front and the hypervolumes as tables."""
    import numpy as np

    from codesign.metrics import quantity

    front, names, volumes = comparison.front, comparison.objectives, comparison.hypervolumes
    several = len(volumes) > 1 or len(comparison.runs) > 1
    equal: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for run, trial in front:
        cells = tuple(quantity(name, trial.metrics[name]) for name in names)
        equal.setdefault(cells, []).append((run.name, str(trial.number)))
    rows: list[tuple[str, ...] | str] = [
        (*same[0], *cells, f"+ {len(same) - 1} equal" if len(same) > 1 else "")
        for cells, same in list(equal.items())[:MOST_ROWS]
    ]
    if len(equal) > MOST_ROWS:
        rows.append(f"... and {len(equal) - MOST_ROWS} more; --json has all")
    lines = [output.table(("run", "trial", *names, ""), rows), ""]
    of = "the joint front of all runs" if several else "the front"
    lines += [f"{len(front)} of {comparison.n_feasible} feasible trials are on {of}", ""]
    box = float(np.prod(comparison.reference)) if "max" not in comparison.senses else 0.0
    rows = []
    for group, values in volumes.items():
        on_front = sum(run.group == group for run, _ in front)
        spread = f"{min(values):.4g} to {max(values):.4g}" if len(values) > 1 else ""
        share = f"{100 * float(np.median(values)) / box:.1f} %" if box > 0 else ""
        rows.append((group, str(len(values)), f"{np.median(values):.4g}", spread, share, str(on_front)))
    lines += [output.table(("runs", "seeds", "hypervolume", "range", "of the box", "on front"), rows)]
    at = ", ".join(f"{name} {value:.6g}" for name, value in zip(names, comparison.reference, strict=True))
    lines += ["hypervolume: the median over seeds; the box goes from 0 to the reference,", at]
    return "\n".join(lines)


def draw(comparison: Comparison, path: str, color: str | None = None) -> None:
    """Draw two objectives, or three in pairs."""
    from codesign.plots import plot_front_grid, plot_pareto

    groups = {name: seeds if len(seeds) > 1 else seeds[0] for name, seeds in comparison.groups.items()}
    if len(comparison.objectives) == 3:
        output.save(plot_front_grid(groups, comparison.objectives, comparison.limits), path)
    else:
        y, x = comparison.objectives
        output.save(plot_pareto(groups, x, y, color, comparison.limits), path)
