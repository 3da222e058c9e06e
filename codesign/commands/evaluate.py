"""``codesign evaluate``: the held-out accuracy of a trained network, and its cost."""

from __future__ import annotations

import argparse
from typing import Any

from codesign.commands import arguments
from codesign.commands.train import add_trial_arguments, loaded_run

EXAMPLE = """
codesign evaluate runs/a --trial best
codesign evaluate runs/a --trial 17 --trained nets/17 --json
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = arguments.command(
        commands, "evaluate", "test a trained network with true integers, and simulate it in full", EXAMPLE
    )
    add_trial_arguments(parser)
    add_trained_argument(parser)
    parser.set_defaults(run=run)


def add_trained_argument(parser: argparse.ArgumentParser) -> None:
    """Where the trained network is."""
    parser.add_argument("--trained", metavar="DIR", help="what train --out wrote (default: RUN/trained/NUMBER)")


def run(args: argparse.Namespace) -> int:
    """Print accuracies, the cost, and how much of each limit it uses."""
    from codesign.evaluation import evaluate_trained
    from codesign.trained import load_trained

    found = evaluate_trained(load_trained(loaded_run(args), args.trial, args.trained))
    print(found.to_json() if args.json else found)
    return 0
