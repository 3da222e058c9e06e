"""``codesign quickstart``: from training to a Pareto front, on real images."""

from __future__ import annotations

import argparse
from typing import Any

from codesign.commands import arguments, output

EXAMPLE = """
codesign quickstart
codesign quickstart --out runs/seed1 --seed 1 --trials 100 --splits 2
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = arguments.command(
        commands,
        "quickstart",
        "train a small network on handwritten digits, search its bitwidths under an energy limit, and test it",
        EXAMPLE,
    )
    parser.add_argument(
        "--out", default="runs/quickstart", metavar="DIR",
        help="where everything is kept (default: %(default)s); a run that was stopped goes on from there",
    )  # fmt: skip
    parser.add_argument("--seed", type=arguments.natural, default=0, metavar="N", help="same seed, same result")
    parser.add_argument(
        "--trials", type=arguments.positive, metavar="N", help="candidates that each strategy evaluates"
    )
    parser.add_argument(
        "--splits", type=int, choices=range(1, 6), metavar="N", help="splits of the images that are tested on, 1 to 5"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run all of it, and print the chosen network beside the uniform ones."""
    output.check_folder(args.out)

    from codesign.quickstart import quickstart
    from codesign.run_directory import RunDirectoryError

    sizes = {"n_trials": args.trials, "n_splits": args.splits}
    try:
        result = quickstart(args.out, args.seed, **{name: value for name, value in sizes.items() if value})
    except RunDirectoryError as error:
        raise ValueError(str(error)) from error
    print(result.to_json() if args.json else result)
    return 0
