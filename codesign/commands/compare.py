"""``codesign compare``: bitwidths x chips, with ratios to the first."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from codesign.commands import arguments, output

if TYPE_CHECKING:
    from codesign.compare import Entry

EXAMPLE = """
codesign compare mobilenet_v2 --bits w8a8,w4a4 --hardware bitfusion,loom
codesign compare resnet18 --bits 4 --equal-area chip --area-mm2 4 --plot p.png
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = arguments.command(
        commands, "compare", "price a network at several bitwidths on several chips, with ratios to the first", EXAMPLE
    )
    arguments.add_network_arguments(parser)
    parser.add_argument(
        "--bits", default="w8a8,w4a4,w2a2", metavar="BITS,...", help="w4a8, 8, or a file (default: %(default)s)"
    )
    arguments.add_hardware_arguments(parser, several=True)
    parser.add_argument(
        "--equal-area", nargs="?", const="array", choices=("array", "chip"),
        help="size every chip to the area of the first, at the best shape, with its buffers and DRAM interface: "
        "the array alone (array, the default), or the buffers in proportion (chip)",
    )  # fmt: skip
    parser.add_argument("--area-mm2", type=float, metavar="MM2", help="that area instead, array and buffers together")
    parser.add_argument("--plot", metavar="FILE", help="draw energy against latency (png, pdf or svg)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Price all pairs; one that a chip cannot run is reported, and the others go on."""
    from codesign.bits import apply_bits
    from codesign.compare import at_equal_area, compare

    output.check(args.plot, output.PLOT_SUFFIXES)
    if args.area_mm2 is not None and not args.equal_area:
        raise ValueError("Option --area-mm2: it is the area of --equal-area, which must be given too.")
    chips = {name.strip(): arguments.hardware(args, name.strip()) for name in args.hardware.split(",")}
    workload = arguments.network(args, args.network)
    with arguments.about(args.network):
        workloads = {bits.strip(): apply_bits(workload, bits.strip()) for bits in args.bits.split(",")}
    if args.equal_area:
        chips = at_equal_area(chips, args.equal_area, args.area_mm2, workloads.values())
    entries = compare(workloads, chips, lambda cells: output.progress(cells, "estimates"))
    if args.json:
        print(json.dumps([_record(entry, entries[0]) for entry in entries], indent=1))
    else:
        print(_text(args, chips, entries))
    failed = [entry for entry in entries if entry.report is None]
    for entry in failed:
        output.print_error(ValueError(f"{entry.hardware} at {entry.bits}: {entry.problem}"))
    if args.plot and len(failed) < len(entries):
        from codesign.compare import plot_compare

        output.save(plot_compare(entries), args.plot)
    return 2 if failed else 0


def _record(entry: Entry, first: Entry) -> dict[str, Any]:
    record: dict[str, Any] = {"hardware": entry.hardware, "bits": entry.bits}
    if entry.report is None:
        return record | {"error": entry.problem}
    return record | {
        "chip": repr(entry.report.hardware),
        "totals": entry.report.totals(),
        "ratios": entry.ratios(first),
    }


def _text(args: argparse.Namespace, chips: Mapping[str, Any], entries: Sequence[Entry]) -> str:
    """One table, the rows of each chip under its name, size and area."""
    header = ("", "ms", "uJ", "uJ ms", "time ratio", "energy ratio", "EDP ratio")
    rows: list[tuple[str, ...] | str] = []
    for i, entry in enumerate(entries):
        if i == 0 or entry.hardware != entries[i - 1].hardware:
            rows.append(_chip_line(entry.hardware, chips[entry.hardware]))
        rows.append((f"  {entry.bits}", *_cells(entry, entries[0])))
    sized = {"array": ", arrays sized to one area", "chip": ", arrays and buffers sized to one area"}
    title = f"{args.network}{sized.get(args.equal_area, '')}; ratios are to the first row"
    return f"{title}\n\n{output.table(header, rows)}"


def _chip_line(name: str, chip: Any) -> str:
    """A chip's name, array and area, as far as it has them."""
    array, area_mm2 = output.array_text(chip), getattr(chip, "area_mm2", None)
    return ", ".join([name, *([f"{array} units"] if array else []), *([f"{area_mm2:.3f} mm2"] if area_mm2 else [])])


def _cells(entry: Entry, first: Entry) -> tuple[str, ...]:
    metrics, ratios = entry.metrics(), entry.ratios(first)
    figures = (("latency_s", 1e3), ("energy_j", 1e6), ("edp_js", 1e9))
    return (
        *(f"{metrics[name] * scale:.4g}" if name in metrics else "-" for name, scale in figures),
        *(f"{ratios[name]:.3f}" if name in ratios else "-" for name, _ in figures),
    )
