"""The command line: parses, calls, prints."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from codesign import __version__
from codesign.commands import COMMANDS
from codesign.commands.output import print_error
from codesign.memory import keep_freed_memory

SUCCESS, FAILURE, BAD_INPUT = 0, 1, 2


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with arguments, where argparse prints all arguments first."""

    def error(self, message: str) -> NoReturn:
        print_error(ValueError(f"{message} (`{self.prog} --help` says what it takes)"))
        self.exit(BAD_INPUT)


def parser() -> argparse.ArgumentParser:
    """The parser of ``codesign`` and its commands."""
    top = Parser(
        prog="codesign",
        description="Price neural networks on accelerators, and search quantized networks under hardware limits.",
        epilog="exit codes: 0 success, 2 bad input, 1 anything else",
    )
    top.add_argument("--version", action="version", version=f"codesign {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns
    -------
    int
        0 for success, 2 for bad input (one line on stderr says what), 1 for anything else.
    """
    args = parser().parse_args(argv)
    logging.basicConfig(format="codesign: %(levelname)s: %(message)s")
    keep_freed_memory()
    try:
        return int(args.run(args))
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (ValueError, OSError) as error:
        print_error(error)
        return BAD_INPUT
    except (ImportError, FloatingPointError) as error:
        print_error(error)
        return FAILURE
    except KeyboardInterrupt as stop:
        print(": ".join(["codesign: interrupted", *map(str, stop.args)]), file=sys.stderr)
        return FAILURE


if __name__ == "__main__":
    sys.exit(main())
