"""Arguments that several commands take."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwmodels.cost import HardwareModel
    from hwmodels.workload import Workload


def command(commands: Any, name: str, help: str, example: str, json: bool = True) -> argparse.ArgumentParser:
    """A command's parser, with its examples at the end of ``--help`` and, unless it has its own, ``--json``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=textwrap.fill(f"{help[0].upper()}{help[1:]}.", 79),
        epilog="examples:\n" + "\n".join(f"  {line}" for line in example.strip().splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def add_network_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """NETWORK and what says how it is read."""
    parser.add_argument(
        "network",
        metavar="NETWORK",
        nargs="+" if several else None,
        help="a built-in or torchvision name, model.onnx, package.module:factory, or layers.csv",
    )
    parser.add_argument(
        "--input-shape", type=shape, metavar="N,C,H,W", help="shape of the network's input; torchvision: 1,3,224,224"
    )
    parser.add_argument("--batch", type=positive, metavar="N", help="images a run, in place of the input's own")
    parser.add_argument(
        "--ignore-unknown", action="store_true", help="leave out operators that have no price, and name them"
    )


def add_hardware_arguments(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """One chip or several, and changes to them."""
    if several:
        parser.add_argument(
            "--hardware", default="bitfusion,int8-array", metavar="CHIP,...",
            help="presets or chip.yaml files (default: %(default)s)",
        )  # fmt: skip
    else:
        parser.add_argument(
            "--hardware", default="bitfusion", metavar="CHIP", help="a preset or chip.yaml (default: %(default)s)"
        )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="FIELD=VALUE",
        help="another value for a field of the chip; may be repeated",
    )
    parser.add_argument(
        "--objective", choices=("latency", "energy", "edp"), help="what the chip's mapping of a layer minimises"
    )


def network(args: argparse.Namespace, source: str) -> Workload:
    """The network that the arguments name."""
    from codesign.networks import load_network

    with about(source):
        return load_network(source, args.input_shape, args.batch, args.ignore_unknown)


@contextmanager
def about(source: str) -> Iterator[None]:
    """Make errors name the network that they are about."""
    try:
        yield
    except (ValueError, OSError) as error:
        if source in str(error):
            raise
        raise ValueError(f"Network {source!r}: {error}") from error


def hardware(args: argparse.Namespace, source: str | None = None) -> HardwareModel:
    """The chip that the arguments describe."""
    from hwmodels.config import load_hardware, parse_settings

    settings = parse_settings(args.settings)
    if args.objective:
        settings["objective"] = args.objective
    return load_hardware(source or args.hardware, settings)


def natural(text: str, least: int = 0) -> int:
    """An int of at least 0."""
    if not text.strip().isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"it must be an integer of at least {least}, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """An int of at least 1."""
    return natural(text, least=1)


def shape(text: str) -> tuple[int, ...]:
    """Comma-separated sizes."""
    return tuple(positive(size) for size in text.split(","))


def bit_range(text: str) -> tuple[int, ...]:
    """Bitwidths such as ``2-8`` or ``2,4,8``, ascending."""
    bits: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or not 1 <= int(match[1]) <= int(match[2] or match[1]) <= 32:
            raise argparse.ArgumentTypeError(f"it must be bitwidths from 1 to 32 such as 2-8 or 2,4,8, got {text!r}")
        bits |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(bits))
