"""``codesign space``: what can be chosen, and what the cheapest and the dearest networks cost."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from codesign.commands import arguments, output, run_arguments

if TYPE_CHECKING:
    from codesign.problem import Problem, Reach

EXAMPLE = """
codesign space mobilenetv2 --preset cifar --hardware bitfusion
codesign space mobilenetv2 --preset tiny --hardware-choice rows=8,16,32
"""
WIDTH = 79


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = arguments.command(
        commands, "space", "list a space's options, its size, and its cheapest and dearest networks", EXAMPLE
    )
    parser.add_argument("family", metavar="SPACE", help="mobilenetv2")
    run_arguments.add_space_arguments(parser)
    run_arguments.add_chip_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the options, and the range of each metric."""
    from codesign.run_spec import RunSpec

    if args.family == "bits":
        raise ValueError("the space must be mobilenetv2 here; codesign search NETWORK prints the range of its bits.")
    spec = run_arguments.spec(args, RunSpec(preset="imagenet"))
    problem = spec.problem()
    ranges = {metric: problem.reachable(metric) for metric in output.progress(problem.metrics, "metrics")}
    if args.json:
        print(json.dumps(_record(problem, ranges), indent=1))
    else:
        name = f"{spec.family}, preset {spec.preset}"
        print(_text(name, spec.hardware, problem, ranges))
    return 0


def _record(problem: Problem, ranges: Mapping[str, Reach]) -> dict[str, Any]:
    from codesign.search_result import reference

    space: Any = problem.space
    options, metrics = reference(problem)
    return {
        "size": space.size,
        "choices": [{"name": c.name, "options": [_plain(option) for option in c.options]} for c in space.choices],
        "reference": {"options": {name: _plain(option) for name, option in options.items()}, "metrics": metrics},
        "metrics": {
            metric: {
                "low": reach.low,
                "high": reach.high,
                "low_arch": list(reach.low_arch),
                "high_arch": list(reach.high_arch),
            }
            for metric, reach in ranges.items()
        },
    }


def _plain(option: Any) -> Any:
    return option._asdict() if hasattr(option, "_asdict") else option


def _text(name: str, chip: str, problem: Problem, ranges: Mapping[str, Reach]) -> str:
    from codesign.metrics import LABELS, quantity
    from codesign.search_result import blocks_text, reference

    space: Any = problem.space
    fields: dict[str, list[Any]] = {}
    for choice in space.choices:
        for option in choice.options:
            pairs = option._asdict().items() if hasattr(option, "_asdict") else [(choice.name, option)]
            for field, value in pairs:
                if value not in fields.setdefault(field, []):
                    fields[field].append(value)
    n_blocks = sum(hasattr(choice.options[0], "_asdict") for choice in space.choices)
    n_options = max(space.option_counts)
    lines = [
        f"{name}: {n_blocks} blocks of {n_options} options each; {_count(space.size)} networks",
        "",
        output.table(("field", "values"), [(f, ", ".join(map(str, v))) for f, v in fields.items()], left=2),
        "",
    ]
    options, metrics = reference(problem)
    rows = [
        (LABELS.get(metric, (metric,))[0], *(quantity(metric, value) if value is not None else "-" for value in values))
        for metric, values in ((m, (reach.low, metrics.get(m), reach.high)) for m, reach in ranges.items())
    ]
    lines += [output.table((f"on {chip}", "least", "reference", "most"), rows), ""]
    lines += _wrapped("reference", blocks_text(options))
    ends: dict[str, list[str]] = {}
    for metric, reach in ranges.items():
        for end, arch in (("least", reach.low_arch), ("most", reach.high_arch)):
            if reach.low < reach.high:
                label = f"{end} {LABELS.get(metric, (metric,))[0]}"
                ends.setdefault(blocks_text(space.decode(arch)), []).append(label)
    for text, labels in ends.items():
        lines += _wrapped(", ".join(labels), text)
    return "\n".join([*lines, "", LEGEND])


#: How networks are written.
LEGEND = "m6 k3 s w8a8: expansion 6, kernel 3, skip, weights of 8 bits, inputs of 8 bits"


def _count(size: int) -> str:
    return f"{size:,}" if size < 10**9 else f"{size:.2e}"


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(f"{label}: {text}", WIDTH, subsequent_indent="    ", break_on_hyphens=False)
