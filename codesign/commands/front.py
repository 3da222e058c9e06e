"""``codesign front``: a search at each of several limits, its baselines, and one front."""

from __future__ import annotations

import argparse
import json
from typing import Any

from codesign import processes
from codesign.commands import arguments, output
from codesign.commands.pareto import comparison_text
from codesign.commands.search import add_run_arguments, default_folder, specification

EXAMPLE = """
codesign front --limit energy_j=0.3x:0.9x:3 --out runs/front
codesign front --limit energy_j=0.2x:0.9x:6 --data cifar10 --data-dir D --out runs/f
codesign front --out runs/front --resume
"""
LIMIT = (
    "one of them a range: energy_j=0.2x:0.9x:6 for six searches, from 0.2 to 0.9 of the reference network; may be "
    "repeated"
)


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = arguments.command(
        commands,
        "front",
        "search at each of several limits, with random search and NSGA-II beside, and draw the fronts",
        EXAMPLE,
    )
    add_run_arguments(parser, LIMIT)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search at each limit, and print the joint front."""
    from codesign.run_spec import FRONT_NAME

    spec = specification(args, FRONT_NAME)
    args.out = args.out or default_folder(spec, "front-")
    output.check_folder(args.out)
    from codesign.front_search import front_search

    with output.resumable(args.out), processes.started(args.device), processes.folder(args.out) as out:
        bars = processes.is_first() and not args.json
        comparison = front_search(spec, out, args.resume, bars, args.tensorboard, args.device)
        if not processes.is_first():
            return 0
    if args.json:
        print(json.dumps(comparison.record(), indent=1))
    else:
        print(comparison_text(comparison))
        print(
            f"\n{comparison.objectives[0]}: with the weights that a strategy scores with, which some train further;\n"
            "what networks are worth shows once they are trained alike, by codesign train"
        )
        print(f"\nfront.json, front.png, energy.png, latency.png, and the runs: {args.out}")
    return 0
