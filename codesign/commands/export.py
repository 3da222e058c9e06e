"""``codesign export``: a trained network in a folder of its own."""

from __future__ import annotations

import argparse
import json
from typing import Any

from codesign.commands import arguments, output
from codesign.commands.evaluate import add_trained_argument, trained_of
from codesign.commands.train import add_trial_arguments

EXAMPLE = """
codesign export runs/a --trial best --out net/
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = arguments.command(
        commands, "export", "write a trained network: weights, architecture and bits, layer table, chip", EXAMPLE
    )
    add_trial_arguments(parser)
    add_trained_argument(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to make")
    parser.add_argument("--force", action="store_true", help="replace another exported network")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the folder, and print what is in it."""
    output.check_folder(args.out)

    from codesign.export import export

    folder = export(trained_of(args), args.out, args.force)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    if args.json:
        print(json.dumps({"folder": str(folder), "bytes": files}, indent=1))
    else:
        print(output.table((str(folder), "bytes"), [(name, f"{size}") for name, size in files.items()]))
    return 0
