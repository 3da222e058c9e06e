"""``codesign table``: every layer x weight bits x input bits."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from codesign.commands import arguments, output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from codesign.layer_table import LayerTable

EXAMPLE = """
codesign table resnet20 --bits 2-8 --out table.npz
codesign table mobilenet_v2 --bits 2,4,8 --hardware stripes --out table.csv
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = arguments.command(
        commands, "table", "price every layer at every weight and input bitwidth: latency and energy", EXAMPLE
    )
    arguments.add_network_arguments(parser)
    parser.add_argument(
        "--bits", type=arguments.bit_range, default=(2, 3, 4, 5, 6, 7, 8), metavar="RANGE",
        help="bitwidths of weights and of inputs, such as 2-8 or 2,4,8 (default: 2-8)",
    )  # fmt: skip
    arguments.add_hardware_arguments(parser)
    parser.add_argument("--out", metavar="FILE", help="table.npz, table.csv or table.json")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Price the table and write it."""
    from codesign.layer_table import SUFFIXES, layer_table

    if not (args.out or args.json):
        raise ValueError("Option --out: the table must go somewhere; give --out table.npz, .csv or .json, or --json.")
    output.check(args.out, SUFFIXES)
    chip = arguments.hardware(args)
    workload = arguments.network(args, args.network)
    table = layer_table(workload, chip, args.bits, args.bits, lambda pairs: output.progress(pairs, "bit pairs"))
    if args.out:
        table.save(args.out)
    print(table.to_json() if args.json else _text(args, table))
    return 0


def _text(args: argparse.Namespace, table: LayerTable) -> str:
    """Totals of the networks whose layers all have the same bitwidths."""
    totals = [("latency, ms", table.latency_s.sum(axis=0) * 1e3)]
    if table.energy_pj is not None:
        totals.append(("energy, uJ", table.energy_pj.sum(axis=0) * 1e-6))
    parts = [
        f"all layers: {what}\n{_matrix(table, total, slice(first, first + COLUMNS))}\n"
        for what, total in totals
        for first in range(0, len(table.input_bits), COLUMNS)
    ]
    n_weights, n_inputs = totals[0][1].shape
    return "\n".join([*parts, f"{args.out}: {len(table.layer)} layers x {n_weights} weight x {n_inputs} input bits"])


#: Input bitwidths that fit beside each other on a terminal.
COLUMNS = 7


def _matrix(table: LayerTable, total: NDArray[np.float64], columns: slice) -> str:
    rows = [(f"w{w}", *(f"{x:.3g}" for x in row)) for w, row in zip(table.weight_bits, total[:, columns], strict=True)]
    return output.table(("", *(f"a{a}" for a in table.input_bits[columns])), rows)
