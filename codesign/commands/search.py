"""``codesign search``: train shared weights, search networks under limits, and report the best one."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign import processes
from codesign.commands import arguments, output, run_arguments

if TYPE_CHECKING:
    from codesign.run_spec import RunSpec

logger = logging.getLogger(__name__)

EXAMPLE = """
codesign search --limit energy_j=0.4x --out runs/digits
codesign search --data cifar10 --data-dir D --limit latency_s=2ms --out runs/a
codesign search --out runs/a --resume
codesign search runs/a/run.yaml --seed 1 --out runs/b
codesign search --hardware-choice rows=8,16 --limit area_mm2=3 --out runs/chip
codesign search resnet20 --weights w.safetensors --data cifar10.npz --limit energy_j=0.6x --out runs/bits
"""
LIMIT = "such as energy_j=0.4x (of the reference network), latency_s=2ms or area_mm2=3; may be repeated"


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = arguments.command(
        commands,
        "search",
        "search a network and its bits, or the bits of a trained one, under limits on its cost",
        EXAMPLE,
    )
    add_run_arguments(parser, LIMIT)
    parser.set_defaults(run=run)


def add_run_arguments(parser: argparse.ArgumentParser, limit: str) -> None:
    """What describes a search, and where it goes."""
    given = run_arguments.GIVEN
    parser.add_argument(
        "spec", nargs="?", metavar="RUN.YAML | NETWORK",
        help="a run to repeat, which further options change (limits given take the place of all of its own); or a "
        "trained network whose bits are searched: resnet20, a classifier of torchvision, or package.module:factory",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="DIR", help="where everything is kept (default: runs/, and then strategy and seed)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    parser.add_argument("--tensorboard", action="store_true", help="write metrics for TensorBoard too")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: a GPU where there is one)")
    parser.add_argument("--space", dest="family", default=given, metavar="NAME", help="mobilenetv2 (default), or bits")
    run_arguments.add_space_arguments(parser)
    run_arguments.add_network_arguments(parser)
    run_arguments.add_data_arguments(parser)
    run_arguments.add_chip_arguments(parser)
    run_arguments.add_search_arguments(parser, limit)


def run(args: argparse.Namespace) -> int:
    """Search, and print the chosen network and how it uses its limits."""
    spec = specification(args)
    args.out = args.out or default_folder(spec)
    output.check_folder(args.out)
    from codesign.launch import launch

    with output.resumable(args.out), processes.started(args.device), processes.folder(args.out) as out:
        bars = processes.is_first() and not args.json
        result = launch(spec, out, args.resume, bars, args.tensorboard, args.device)
        if not processes.is_first():
            return 0
    if args.json:
        print(json.dumps(result.record(), indent=1))
    else:
        print(result)
        chosen = "bits" if spec.family == "bits" else "blocks"
        print(f"\nrun.yaml, trials, result.json, front.png, {chosen}.png, layers.png: {args.out}")
    return 0


def default_folder(spec: RunSpec, kind: str = "") -> str:
    """Where a run is kept unless told; one that is there already is gone on with only when asked."""
    from codesign.family import family

    return f"runs/{kind}{spec.strategy or family(spec.family).strategy}-seed{spec.seed}"


def specification(args: argparse.Namespace, name: str | None = None) -> RunSpec:
    """What the arguments describe: on top of the file given, or of the run that is gone on with.

    Raises
    ------
    ValueError
        For a file or a value that is none.
    """
    from codesign.run_spec import SPEC_NAME, RunSpec

    held = Path(args.out) / (name or SPEC_NAME) if args.out else None
    if args.resume and held and not held.exists():
        logger.warning("%s: there is no run to go on with yet; a new one begins.", args.out)
    source = args.spec or (held if args.resume and held and held.exists() else None)
    if args.spec and not Path(args.spec).exists() and Path(args.spec).suffix not in (".yaml", ".yml"):
        source, args.network = None, args.spec
    spec = run_arguments.spec(args, RunSpec.read(source) if source else None)
    spec.hardware_model(), spec.search_strategy()  # bad names and values are said at once
    if spec.family == "mobilenetv2":
        spec.space()
    return spec
