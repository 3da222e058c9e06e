"""``codesign estimate``: latency, energy and area of networks on a chip, layer by layer."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from codesign.commands import arguments, output

if TYPE_CHECKING:
    from hwmodels.cost import CostReport, HardwareModel

EXAMPLE = """
codesign estimate mobilenet_v2 --bits w4a8
codesign estimate resnet18 --hardware chip.yaml --set rows=32 --plot plot.png
codesign estimate model.onnx layers.csv --objective energy --csv costs.csv
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = arguments.command(
        commands, "estimate", "price networks on a chip: latency, energy and area, layer by layer", EXAMPLE
    )
    arguments.add_network_arguments(parser, several=True)
    parser.add_argument("--bits", metavar="BITS", help="w4a8, 8, or a YAML or JSON file with a line for each layer")
    arguments.add_hardware_arguments(parser)
    parser.add_argument("--resident", action="store_true", help="hand activations over on chip where they fit")
    parser.add_argument("--csv", metavar="FILE", help="write one line a layer")
    parser.add_argument("--plot", metavar="FILE", help="draw the energy of each layer (png, pdf or svg)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Price each network; a bad one is reported, and the others go on."""
    output.check(args.csv, (".csv",))
    output.check(args.plot, output.PLOT_SUFFIXES)
    if args.plot and len(args.network) > 1:
        raise ValueError(f"Option --plot: it draws one network, got {len(args.network)}; run them one by one.")
    chip = arguments.hardware(args)
    reports: list[CostReport] = []
    code = 0
    for source in args.network:
        try:
            report = _report(args, source, chip)
        except Exception as error:
            expected = isinstance(error, (ValueError, OSError))
            if len(args.network) == 1:
                raise
            code = max(code, 2) if expected else 1
            output.print_error(error if expected else RuntimeError(f"{source}: {type(error).__name__}: {error}"))
            if args.json:
                print(json.dumps({"network": source, "error": output.one_line(error)}))
            continue
        print(report.to_json(indent=None) if args.json else _text(args, report, first=not reports), flush=True)
        reports.append(report)
    if args.csv and reports:
        _write_csv(args.csv, reports)
    if args.plot:
        from codesign.plots import plot_layers

        output.save(plot_layers(reports[0]), args.plot)
    return code


def _report(args: argparse.Namespace, source: str, chip: HardwareModel) -> CostReport:
    from hwmodels.cost import estimate

    workload = arguments.network(args, source)
    with arguments.about(source):
        if args.bits:
            from codesign.bits import apply_bits

            workload = apply_bits(workload, args.bits)
        return estimate(workload, chip, resident=args.resident)


def _text(args: argparse.Namespace, report: CostReport, first: bool) -> str:
    workload = report.workload
    title = f"{workload.name}, batch {workload.batch}, on {args.hardware}"
    return ("" if first else "\n") + f"{title}\n\n{report}"


def _write_csv(path: str, reports: Sequence[CostReport]) -> None:
    rows = [{"network": report.workload.name, **row} for report in reports for row in report.rows()]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
