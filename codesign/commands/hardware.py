"""``codesign hardware``: the presets, and every field of one."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from codesign.commands import arguments, output

EXAMPLE = """
codesign hardware list
codesign hardware show bitfusion > my_chip.yaml
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = arguments.command(
        commands, "hardware", "list the presets, or show every field of one with its unit and source", EXAMPLE
    )
    parser.add_argument("action", choices=("list", "show"))
    parser.add_argument("name", nargs="?", metavar="NAME", help="show: a preset or chip.yaml")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the list, or one chip as a file that ``--hardware`` reads."""
    if (args.action == "show") != (args.name is not None):
        raise ValueError(f"hardware {args.action}: a name must be given to show and to it alone, got {args.name!r}.")
    return _show(args) if args.action == "show" else _list(args)


def _show(args: argparse.Namespace) -> int:
    from hwmodels.config import load_hardware, to_yaml

    chip: Any = load_hardware(args.name)
    text = to_yaml(chip)
    if args.json:
        print(json.dumps({"type": type(chip).__name__, **dataclasses.asdict(chip)}, indent=1))
    else:
        print(f"# {args.name}", text, sep="\n", end="")
    return 0


def _list(args: argparse.Namespace) -> int:
    from hwmodels import HARDWARE

    chips = {name: make() for name, make in HARDWARE.items()}
    records = [{"name": name, "type": type(chip).__name__, **_size(chip)} for name, chip in chips.items()]
    if args.json:
        print(json.dumps(records, indent=1))
        return 0
    rows = [
        (
            record["name"],
            record["type"],
            output.array_text(chips[record["name"]]),
            "/".join(f"{size / 1024:g}" for size in record["buffers_bytes"]),
            f"{record['dram_bits_per_cycle']}",
            f"{record['area_mm2']:.3g}",
        )
        for record in records
    ]
    print(output.table(("preset", "type", "array", "w/i/o KiB", "DRAM b/cycle", "mm2"), rows, left=2))
    return 0


def _size(chip: Any) -> dict[str, Any]:
    return {
        "rows": chip.rows,
        "cols": chip.cols,
        "buffers_bytes": [getattr(chip, f"{name}_buffer_bytes") for name in ("weight", "input", "output")],
        "dram_bits_per_cycle": chip.dram_bits_per_cycle,
        "area_mm2": chip.area_mm2,
    }
