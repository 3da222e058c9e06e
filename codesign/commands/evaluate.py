"""``codesign evaluate``: the held-out accuracy of a trained network, and its cost."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from codesign.commands import arguments
from codesign.commands.train import add_trial_arguments, loaded_run

if TYPE_CHECKING:
    from codesign.trained import Trained

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
    parser.add_argument(
        "--trained", metavar="DIR",
        help="what train --out wrote (default: RUN/trained/NUMBER; where bits were searched and that is not there, the "
        "given weights)",
    )  # fmt: skip


def trained_of(args: argparse.Namespace) -> Trained:
    """The trained network; where bits were searched and none was trained, that with the weights as they were given."""
    from codesign.trained import RESULT_NAME, load_trained, quantized_trial, trained_folder

    found = loaded_run(args)
    kept = args.trained or trained_folder(found, found.trial(args.trial))
    if args.trained is None and found.spec.family == "bits" and not (kept / RESULT_NAME).exists():
        return quantized_trial(found, args.trial)
    return load_trained(found, args.trial, kept)


def run(args: argparse.Namespace) -> int:
    """Print accuracies, the cost, and how much of each limit it uses."""
    from codesign.evaluation import evaluate_trained

    found = evaluate_trained(trained_of(args))
    print(found.to_json() if args.json else found)
    return 0
