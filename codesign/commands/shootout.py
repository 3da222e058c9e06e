"""``codesign shootout``: strategies side by side on the bits of one trained network."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.commands import arguments, output, run_arguments

if TYPE_CHECKING:
    from codesign.shootout import Shootout

EXAMPLE = """
codesign shootout resnet20 --weights w.safetensors --data cifar10.npz --out runs/s
codesign shootout --out runs/s --resume
codesign shootout my_nets:build --weights w.safetensors --strategies milp,haq --out b
codesign shootout resnet20 --weights w.safetensors --limit energy_j=50% --out runs/c
"""
LIMIT = (
    "of one search: energy_j=60%% (of the way from the cheapest to 8 bits, or to the widest where 8 is none of them) "
    "or energy_j=0.5x,latency_s=1ms; may be repeated"
)


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = arguments.command(
        commands, "shootout", "compare strategies on the bits of a trained network, at equal budgets", EXAMPLE
    )
    parser.add_argument("network", nargs="?", metavar="NETWORK", help="as for search")
    parser.add_argument("--out", required=True, metavar="DIR", help="where everything is kept")
    parser.add_argument("--resume", action="store_true", help="go on with the shootout in DIR")
    parser.add_argument("--retry", action="store_true", help="with --resume: do again what has failed")
    parser.add_argument("--report", action="store_true", help="print what is known of that in DIR, and compute nothing")
    parser.add_argument("--minutes", type=float, default=float("inf"), metavar="N", help="begin nothing after so long")
    parser.add_argument("--strategies", default="all", metavar="A,B,...", help="default: all")
    parser.add_argument(
        "--evaluations", type=arguments.positive, default=400, metavar="N",
        help="budget of a search: the image passes of so many evaluations (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=arguments.positive, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--tune-epochs", type=arguments.natural, default=0, metavar="N",
        help="tune the chosen networks for so many epochs, all alike (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--tune-limits", default="0", metavar="I,J,...", help="those of which limits, from 0 (default: %(default)s)"
    )
    parser.add_argument("--limit", action="append", dest="limits", default=None, metavar="LIMITS", help=LIMIT)
    parser.add_argument(
        "--score", choices=("error", "loss"), default="loss",
        help="what is minimised on the search set (default: %(default)s, which has less noise)",
    )  # fmt: skip
    parser.add_argument("--seed", type=arguments.natural, default=run_arguments.GIVEN, metavar="N", help="of the data")
    parser.add_argument("--device", metavar="NAME", help="cpu or cuda (default: a GPU where there is one)")
    run_arguments.add_network_arguments(parser)
    run_arguments.add_data_arguments(parser)
    run_arguments.add_chip_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search, and print the tables."""
    output.check_folder(args.out)
    from codesign.shootout_report import ShootoutReport

    done = True
    if not args.report:
        from codesign.shootout import Arena

        arena = Arena(shootout(args), args.out, args.resume, args.device)
        with output.resumable(args.out):
            done = arena.run(not args.json, None if args.json else _say, args.minutes, args.retry)
    report = ShootoutReport.load(args.out)
    _draw(report, Path(args.out))
    if args.json:
        print(json.dumps({**report.record, "rows": list(report.rows), "finals": report.finals}, indent=1))
        return 0
    print(report)
    print(f"\nshootout.json, finals.json, plots, and a run for each search: {args.out}")
    if not done:
        print(f"not finished; go on with codesign shootout --out {args.out} --resume")
    return 0


def shootout(args: argparse.Namespace) -> Shootout:
    """What the arguments describe, or what the directory holds that is to be gone on with.

    Raises
    ------
    ValueError
        For values out of range.
    """
    from codesign.run_spec import RunSpec
    from codesign.shootout import LIMITS, SHOOTOUT_NAME, STRATEGIES, Shootout

    if not args.minutes >= 0:
        raise ValueError(f"Option --minutes: it must be a number of at least 0, got {args.minutes}.")
    held = Path(args.out) / SHOOTOUT_NAME
    if args.network is None and not held.exists():
        raise ValueError(
            f"Shootout: {args.out!r} must hold one to be gone on with, but holds none; name a network to begin one."
        )
    if args.resume and args.network is None and held.exists():
        record = json.loads(held.read_bytes())["shootout"]
        record["limits"] = tuple(tuple(limit) for limit in record["limits"])
        fixed = {name: tuple(record[name]) for name in ("strategies", "tune_limits")}
        return Shootout(**{**record, **fixed, "spec": RunSpec.from_fields(record["spec"])})
    limits = args.limits or list(LIMITS)
    del args.limits
    spec = run_arguments.spec(args, RunSpec(family="bits", objective=args.score))
    names = (
        STRATEGIES
        if args.strategies == "all"
        else tuple(name.strip() for name in args.strategies.split(",") if name.strip())
    )
    return Shootout(
        spec, names, tuple(tuple(text.split(",")) for text in limits), args.evaluations, args.seeds,
        tune_epochs=args.tune_epochs, tune_limits=_numbers(args.tune_limits, len(limits)),
    )  # fmt: skip


def _numbers(text: str, n_limits: int) -> tuple[int, ...]:
    """Which limits a text such as 0,2 names."""
    numbers = [number.strip() for number in text.split(",")]
    bad = [number for number in numbers if not number.isdecimal()]
    if bad:
        raise ValueError(
            f"Shootout: --tune-limits must be numbers of limits in their order, from 0 to {n_limits - 1}, such as 0,1; "
            f"got {bad[0]!r} in {text!r}."
        )
    return tuple(map(int, numbers))


def _say(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


def _draw(report: Any, folder: Path) -> None:
    """One plot for each metric under a limit, and one more after tuning."""
    import matplotlib.pyplot as plt

    metrics = dict.fromkeys(text.partition("=")[0] for limit in report.record["limits"] for text in limit)
    kinds = ["test", *(["tuned"] if any(name.startswith("tuned") for name in report.finals) else [])]
    for metric in metrics:
        for kind in kinds:
            if kind == "tuned" and not report.compared(metric, kind):
                continue
            figure = report.plot(metric, kind).figure
            figure.savefig(folder / f"{metric.rpartition('_')[0]}{'' if kind == 'test' else '_tuned'}.png", dpi=130)
            plt.close(figure)
