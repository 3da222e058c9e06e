"""Strategies for the bits of ResNet-20 side by side on CIFAR-10, and the winner on ResNet-32 and -56.

    python benchmarks/repro_bits.py --budget                                  # image passes of every arm
    python benchmarks/repro_bits.py --data DIR/cifar10.npz --weights DIR2 --work runs/bits
    python benchmarks/repro_bits.py --work runs/bits --report                 # tables and plots of what is known

DIR2 holds ``resnet20_cifar10.safetensors`` and so on: trained weights for normalised images. The work is a shootout
(`codesign.shootout`) in ``--work``, so it goes on where it was stopped, ``--minutes`` stops it by itself, and several
processes may work side by side; each computes on one thread. What is known is copied to ``benchmarks/results/``, and
what is there is not computed again: move ``bits_*.json`` away to begin anew.

Choices are made on images of CIFAR-10's test file, as the networks were trained on all images of the other; the
errors reported are those of the rest of the test file.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from jobs import parser
from scipy.stats import kendalltau

from codesign.describe import differences
from codesign.run_directory import write_atomically
from codesign.run_spec import RunSpec
from codesign.shootout import (
    FINALS_NAME,
    LIMITS,
    ROW_NAME,
    SHOOTOUT_NAME,
    STRATEGIES,
    Arena,
    Shootout,
)
from codesign.shootout_report import ShootoutReport
from codesign.strategies import STRATEGIES as KINDS
from codesign.strategies.relaxed_bits import RelaxedBits

RESULTS = Path(__file__).parent / "results"
NETWORKS = ("resnet20", "resnet32", "resnet56")
N_SEARCH, N_TEST, N_TRAIN, N_CALIBRATION = 500, 9500, 10_000, 128
EVALUATIONS, SEEDS, TUNE_EPOCHS = 150, 3, 1
#: Of the limits, those whose networks are tuned: 40 % and 20 % of the energy.
TUNED = (1, 2)
#: Networks that a rank correlation says something on.
FEWEST = 20
#: What ResNet-32 and -56 are searched with: the strategy that won on ResNet-20, and random search beside it.
WINNERS = ("milp", "random")


def shootout(network: str, data: str | None, weights: Path | None) -> Shootout:
    """The experiment on one network."""
    spec = RunSpec(
        family="bits", network=network, weights=str((weights or Path()) / f"{network}_cifar10.safetensors"),
        dataset=data or "cifar10.npz", data_dir=".", normalize="imagenet", n_train=N_TRAIN, n_search=N_SEARCH,
        n_test=N_TEST, objective="loss", network_settings={"calibration": N_CALIBRATION},
    )  # fmt: skip
    first = network == NETWORKS[0]
    return Shootout(
        spec, STRATEGIES if first else WINNERS, tuple((limit,) for limit in (LIMITS if first else LIMITS[1:3])),
        EVALUATIONS, SEEDS if first else 1, tune_epochs=TUNE_EPOCHS if first else 0,
        tune_limits=TUNED if first else (0,),
    )  # fmt: skip


def budget() -> str:
    """Image passes of every arm, a forward pass counting 1, and forward and backward 3."""
    passes = EVALUATIONS * (N_SEARCH + N_CALIBRATION)
    tuned = len(STRATEGIES) * SEEDS * len(TUNED)
    return "\n".join([
        "| arm | searches | image passes each |", "| --- | --- | --- |",
        f"| ResNet-20: each of {len(STRATEGIES)} strategies | {len(LIMITS) * SEEDS} | {passes:,} |",
        f"| ResNet-20: tuning of the networks at two limits | at most {tuned} | {TUNE_EPOCHS * N_TRAIN * 3:,} |",
        f"| ResNet-32, ResNet-56: {' and '.join(WINNERS)} | 2 | {passes:,} |",
    ]) + "\n"  # fmt: skip


def ranking(report: ShootoutReport) -> str:
    """Kendall's tau between what searches say of their networks and the test error of these after equal tuning.

    A network that several searches scored alike counts once.
    """
    objective, epochs = report.record["spec"]["objective"], report.record["tune_epochs"]
    scored = {
        (tuple(row["arch"]), float(row["metrics"][objective])): row
        for row in report.found
        if row["limit"] in report.record["tune_limits"] and not math.isnan(report.error("tuned", row))
    }
    if not scored:
        return ""
    groups = {
        "all": list(scored.values()),
        "scored with the weights as given": [
            row for row in scored.values() if not issubclass(KINDS[row["strategy"]], RelaxedBits)
        ],
        **{report.limits[i]: [row for row in scored.values() if row["limit"] == i]
           for i in report.record["tune_limits"]},
    }  # fmt: skip
    lines = [
        f"Kendall's tau between the {objective} that the search found and the test error after {epochs} epoch"
        f"{'' if epochs == 1 else 's'} of tuning:\n",
        "| networks | number | tau | p |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, rows in groups.items():
        tau = kendalltau(
            [row["metrics"][objective] for row in rows], [report.error("tuned", row) for row in rows]
        ) if len(rows) > 1 else None  # fmt: skip
        lines.append(f"| {name} | {len(rows)} | " + (f"{tau.statistic:.3f} | {tau.pvalue:.2g} |" if tau else "- | - |"))
    if len(scored) < FEWEST:
        lines.append(f"\nThat are fewer than {FEWEST} networks, so little is to be made of it yet.")
    return "\n".join(lines) + "\n"


def processor_hours(report: ShootoutReport) -> float:
    """Of all searches, tests and tunings."""
    return sum(one.get("processor_s", 0.0) for one in (*report.rows, *report.finals.values())) / 3600


def portable(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a shootout, its files named wherever they lie."""
    spec = record["spec"]
    names = {name: Path(spec[name]).name for name in ("weights", "dataset")}
    return {**record, "spec": {**spec, **names, "data_dir": "."}}


def keep(network: str, work: Path) -> ShootoutReport:
    """Copy what is known to the results, with a table and plots."""
    report = ShootoutReport.load(work / network)
    known = {**portable(report.record), "rows": list(report.rows), "finals": report.finals}
    name = f"bits_{network}"
    write_atomically(RESULTS / f"{name}.json", json.dumps(known, indent=1).encode())
    text = (
        f"# Strategies for the bits of {network} on CIFAR-10\n\nCommand: `python benchmarks/repro_bits.py --data "
        f"cifar10.npz --weights DIR`; results: `{name}.json`. Processor time: {processor_hours(report):.2f} hours.\n\n"
        f"```\n{report}\n```\n\n{ranking(report)}"
    )
    for kind in ("test", "tuned") if any(final.startswith("tuned") for final in report.finals) else ("test",):
        metrics = [metric for metric in ("energy_j", "latency_s") if report.compared(metric, kind)]
        if not metrics:
            continue
        figure, axes = plt.subplots(
            1, len(metrics), figsize=(6.5 * len(metrics), 4.6), layout="constrained", squeeze=False
        )
        for ax, metric in zip(axes[0], metrics, strict=True):
            report.plot(metric, kind, ax)
        path = RESULTS / f"{name}{'' if kind == 'test' else '_tuned'}.png"
        figure.savefig(path, dpi=120)
        plt.close(figure)
        text += f"\n![test error against cost]({path.name})\n"
    write_atomically(RESULTS / f"{name}.md", text.encode())
    return report


def restore(network: str, work: Path) -> None:
    """Put what is known from earlier work back into a work folder that lacks it; what failed is tried again.

    Raises
    ------
    SystemExit
        Where it is of another experiment than the one in the folder.
    """
    path = RESULTS / f"bits_{network}.json"
    if not path.exists():
        return
    known = json.loads(path.read_bytes())
    if (work / network / SHOOTOUT_NAME).exists():
        now = portable(ShootoutReport.load(work / network).record)
        lines = list(differences({name: known.get(name) for name in now}, now, "experiment"))
        if lines:
            raise SystemExit(f"{path}: it holds another experiment ({'; '.join(lines)}); move it away to begin anew.")
    for row in known["rows"]:
        limit = "_".join(known["limits"][row["limit"]]).replace("%", "pc")
        place = work / network / row["strategy"] / limit / f"seed-{row['seed']}" / ROW_NAME
        if not place.exists() and "failed" not in row:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, (json.dumps(row, indent=1) + "\n").encode())
    finals = work / network / FINALS_NAME
    if not finals.exists():
        good = {name: scores for name, scores in known["finals"].items() if "failed" not in scores}
        write_atomically(finals, (json.dumps(good, indent=1) + "\n").encode())
    shootout = work / network / SHOOTOUT_NAME
    if not shootout.exists():
        record = {name: value for name, value in known.items() if name not in ("rows", "finals")}
        costs = {name: record.pop(name) for name in ("reference", "uniform")}
        write_atomically(shootout, (json.dumps({"shootout": record, **costs}, indent=1) + "\n").encode())


def main() -> None:
    arguments = parser(__doc__.splitlines()[0], "runs/repro_bits")
    arguments.add_argument("--data", help="cifar10.npz, with x_train, y_train, x_test, y_test")
    arguments.add_argument("--weights", type=Path, help="folder of NETWORK_cifar10.safetensors")
    arguments.add_argument("--networks", default=",".join(NETWORKS), help="default: %(default)s")
    arguments.add_argument("--budget", action="store_true", help="print the budget and do nothing")
    args = arguments.parse_args()
    if args.budget:
        print(budget(), end="")
        return
    torch.set_num_threads(args.threads)
    hours, end = 0.0, time.monotonic() + 60 * args.minutes
    for network in args.networks.split(","):
        done = True
        if args.report:
            restore(network, args.work)
            if not (args.work / network).exists():
                continue
        else:
            arena = Arena(shootout(network, args.data, args.weights), args.work / network, resume=True)
            restore(network, args.work)
            minutes = (end - time.monotonic()) / 60
            done = arena.run(say=lambda text: print(text, flush=True), minutes=minutes)
        report = keep(network, args.work)
        hours += processor_hours(report)
        print(network, report, ranking(report), f"Processor hours so far: {hours:.2f}", sep="\n\n")
        if not done:
            print("not finished; the same command goes on")
            break


if __name__ == "__main__":
    main()
