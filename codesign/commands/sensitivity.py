"""``codesign sensitivity``: how much each layer of a trained network loses at each pair of bitwidths."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.commands import arguments, output, run_arguments

if TYPE_CHECKING:
    from codesign.sensitivity import Additivity, Sensitivities

EXAMPLE = """
codesign sensitivity resnet20 --weights w.safetensors --data cifar10.npz --out s.npz
codesign sensitivity my_pkg.net:build --weights w.safetensors --data D/ --plot s.png
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = arguments.command(
        commands, "sensitivity", "measure what each layer of a trained network loses at fewer bits", EXAMPLE
    )
    parser.add_argument("network", metavar="NETWORK", help="as for search")
    parser.add_argument("--out", metavar="FILE.npz", help="write layers, bits, base_loss, and increase by layer")
    parser.add_argument("--plot", metavar="FILE", help=f"draw it ({', '.join(output.PLOT_SUFFIXES)})")
    parser.add_argument(
        "--checks", type=arguments.natural, default=20, metavar="N",
        help="random assignments on which it is measured how additive it is, 0 for none (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: a GPU where there is one)")
    run_arguments.add_network_arguments(parser)
    run_arguments.add_data_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, write, and print a row for each layer."""
    output.check(args.out, (".npz",))
    output.check(args.plot, output.PLOT_SUFFIXES)
    if args.checks == 1:
        raise ValueError("Option --checks: it must be 0 or at least 2, got 1.")
    import numpy as np
    from tqdm import tqdm

    from codesign.accuracy import place_of
    from codesign.family import family
    from codesign.launch import prepared
    from codesign.run_spec import RunSpec
    from codesign.sensitivity import additivity, sensitivities

    place = place_of(args.device)
    spec, data = prepared(run_arguments.spec(args, RunSpec(family="bits")))
    task = family("bits").task(spec, data, Path(), place)
    space, accuracy = task.space, task.accuracy()
    total = len(space.searched) * (len(space.bits) ** len(space.operands) - 1) + 1
    with tqdm(total=total, unit=" evaluations", ncols=80) as bar:
        found = sensitivities(accuracy, space, bar.update)
    rng = np.random.default_rng(0)
    archs = [space.sample(rng) for _ in range(args.checks)]
    check = additivity(found, accuracy, space, archs) if archs else None
    if args.out:
        found.save(args.out)
    if args.plot:
        from codesign.plots import plot_sensitivity

        output.save(plot_sensitivity(found), args.plot)
    print(json.dumps(_record(found, check), indent=1) if args.json else _text(found, check, args.out))
    return 0


def _record(found: Sensitivities, check: Additivity | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "layers": list(found.layers), "bits": list(found.bits), "base_loss": found.base_loss,
        "increase": found.increase.tolist(),
    }  # fmt: skip
    return record if check is None else {**record, "r2": check.r2, "tau": check.tau}


def _text(found: Sensitivities, check: Additivity | None, path: str | None) -> str:
    """A layer a row: weights at each bitwidth with inputs at the widest, and the other way round."""
    fewest = found.bits[:-1] if len(found.bits) <= 5 else found.bits[:4]
    columns = [found.bits.index(bits) for bits in fewest]
    both = found.increase.shape[2] > 1
    header = ("layer", *(f"w{b}" for b in fewest), *((f"a{b}" for b in fewest) if both else ()))
    rows = [
        (
            name, *(f"{values[i, -1]:+.4f}" for i in columns),
            *((f"{values[-1, i]:+.4f}" for i in columns) if both else ()),
        )
        for name, values in zip(found.layers, found.increase, strict=True)
    ]  # fmt: skip
    widest = found.bits[-1]
    lines = [
        f"Loss at {widest} bits: {found.base_loss:.4f} nats; what a layer adds with weights (w) or inputs (a) at fewer",
        "", output.table(header, rows),
    ]  # fmt: skip
    if check:
        lines += ["", f"On {len(check.measured)} random assignments their sum has R^2 {check.r2:.2f} and Kendall tau "
                  f"{check.tau:.2f}."]  # fmt: skip
    return "\n".join([*lines, *(["", f"{path}"] if path else [])])
