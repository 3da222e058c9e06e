"""Tables and plots of `repro_mpnas.py` from its results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codesign.pareto import hypervolume
from codesign.trial import Trial

SEARCHED = ("mpnas", "gumbel", "reinforce", "random", "nsga2")
#: Reference point of the hypervolume: this error, and this share of the energy of the fixed network at 8 bits.
REFERENCE = (0.9, 1.2)

Point = dict[str, float]


class Report:
    """What came out, by arm and seed.

    Parameters
    ----------
    results : mapping
        By the name of the job.
    final_name : callable
        From data set, arch, seed and bits to the name of the job that trained this network from scratch.
    uniform : mapping
        Archs of the fixed network by bitwidth.
    data : str
    seeds : sequence of int
    """

    def __init__(
        self, results: Mapping[str, Any], final_name: Any, uniform: Mapping[int, Any], data: str, seeds: Sequence[int]
    ) -> None:
        self.results, self.data = results, data
        self.arms: dict[str, dict[int, list[Point]]] = {}
        for seed in seeds:
            for bits, arch in uniform.items():
                self._add("uniform bits", seed, final_name(data, arch, seed, None), {"name": f"uniform {bits} bits"})
            for share, bits in results.get(f"knapsack/{data}", {"bits": {}})["bits"].items():
                found = final_name(data, uniform[max(uniform)], seed, bits)
                self._add("knapsack bits", seed, found, {"name": f"knapsack, {share}x", "limit": float(share)})
        for job, found in results.items():
            kind, _, rest = job.partition("/")
            if kind == "search" and rest.startswith(f"{data}/"):
                _, strategy, limit, seed = rest.split("/")
                name = final_name(data, found["network_arch"], int(seed), None)
                self._add(strategy, int(seed), name, {"name": f"{strategy}, {limit}x", "limit": float(limit)}, found)
        whole = [p for p in self.points("uniform bits") if p["name"] == f"uniform {max(uniform)} bits"]
        self.whole_j = whole[0]["energy_j"] if whole else float("nan")

    def _add(self, arm: str, seed: int, job: str, about: dict[str, Any], search: Any = None) -> None:
        final = self.results.get(job)
        if final is None:
            return
        point = {**about, "seed": seed, "error": final["test_error"], "energy_j": final["energy_j"],
                 "latency_s": final["latency_s"], "arch": final["arch"]}  # fmt: skip
        if search:  # the chip may have been chosen too, so cost is that of the search's full simulation
            point |= {name: search["metrics"][name] for name in ("energy_j", "latency_s")}
            point["usage"] = max(search["usage"].values())
        self.arms.setdefault(arm, {}).setdefault(seed, []).append(point)

    def points(self, arm: str) -> list[Point]:
        """All networks of an arm."""
        return [point for seed in self.arms.get(arm, {}).values() for point in seed]

    def fronts(self, arm: str) -> dict[int, list[Point]]:
        """The networks of an arm by seed, without seeds of which fewer are trained than of others."""
        found = self.arms.get(arm, {})
        most = max(map(len, found.values()), default=0)
        return {seed: points for seed, points in found.items() if len(points) == most}

    def __str__(self) -> str:
        parts = self._targets(), self._networks(), self._against_fixed(), self._volumes(), self._effort()
        return "\n\n".join(part for part in parts if part)

    def _targets(self) -> str:
        """What the joint search was to reach, and what it reached."""
        fronts = [self.arms[arm] for arm in ("mpnas", "gumbel", "reinforce") if arm in self.arms]
        if not fronts or not self.points("uniform bits"):
            return ""
        rows = []
        for arm in ("mpnas", "gumbel", "reinforce"):
            for fixed in ("uniform bits", "knapsack bits"):
                compared = [self._compared(arm, points) for points in self._fixed(fixed).values()]
                gains = [_median(gains) for gains, _ in compared if gains]
                if gains:
                    medians = [_median(ratios) for _, ratios in compared]
                    ratios = [f"{ratio:.2f}x" if np.isfinite(ratio) else "-" for ratio in medians]
                    rows.append((arm, fixed, f"{sum(gain >= 0 for gain in gains)} of {len(gains)}", ", ".join(ratios)))
        header = ("arm", "against", "networks that it dominates", "energy ratio at no less accuracy, cheapest first")
        seeds = ", ".join(f"{arm} {len(self.fronts(arm))}" for arm in SEARCHED if arm in self.arms)
        text = (
            f"## Targets\n\nSeeds of which all networks are trained: {seeds}. Of medians over them: the front is to "
            "dominate every fixed network, at 1.5x less energy than uniform bits for the same accuracy.\n\n"
            f"{_table(header, rows)}"
        )
        volumes = {arm: _median(self.volumes(arm)) for arm in SEARCHED if arm in self.arms}
        most = max((arm for arm in ("random", "nsga2") if arm in volumes), key=volumes.__getitem__, default=None)
        text += "\n\n"
        if most:
            more = [arm for arm in ("mpnas", "gumbel", "reinforce") if volumes.get(arm, 0) > volumes[most]]
            text += f"More hypervolume than random search and NSGA-II: {', '.join(more) or 'none'}. "
        usages = [point["usage"] for arm in self.arms for point in self.points(arm) if "usage" in point]
        met = sum(usage <= 1 for usage in usages)
        return (
            text + f"Limits met, by a full simulation: {met} of {len(usages)} (largest use {100 * max(usages):.2f} %)."
        )

    def _fixed(self, arm: str) -> dict[str, dict[int, Point]]:
        """By name the networks of an arm by their seed, the cheapest first."""
        found: dict[str, dict[int, Point]] = {}
        for point in sorted(self.points(arm), key=lambda point: point["energy_j"]):
            found.setdefault(str(point["name"]), {})[int(point["seed"])] = point
        return found

    def _compared(self, arm: str, fixed: Mapping[int, Point]) -> tuple[list[float], list[float]]:
        """For each seed of an arm the points of accuracy gained at no more energy, and the energy ratio."""
        gains, ratios = [], []
        for seed, found in self.fronts(arm).items():
            one = fixed.get(seed, fixed[min(fixed)])
            errors = [p["error"] for p in found if p["energy_j"] <= one["energy_j"]]
            energies = [p["energy_j"] for p in found if p["error"] <= one["error"]]
            gains.append(100 * (one["error"] - min(errors)) if errors else np.nan)
            ratios.append(one["energy_j"] / min(energies) if energies else np.nan)
        return gains, ratios

    def _networks(self) -> str:
        rows = []
        for arm in ("uniform bits", "knapsack bits", *SEARCHED, "mpnas-chip"):
            for point in sorted(self.points(arm), key=lambda p: (p["seed"], p["energy_j"])):
                used = f"{100 * point['usage']:.1f} %" if "usage" in point else ""
                rows.append((point["name"], point["seed"], f"{100 * (1 - point['error']):.2f} %",
                             f"{point['energy_j'] * 1e6:.2f}", f"{point['energy_j'] / self.whole_j:.3f}x",
                             f"{point['latency_s'] * 1e6:.2f}", used))  # fmt: skip
        header = ("network", "seed", "test accuracy", "energy (uJ)", "of 8 bits", "latency (us)", "limit used")
        return "## Networks trained alike from scratch\n\n" + _table(header, rows)

    def _against_fixed(self) -> str:
        """For each fixed network the best of each arm at no more energy, and the least energy at no more error."""
        rows = []
        for fixed in ("uniform bits", "knapsack bits"):
            for name, points in self._fixed(fixed).items():
                for arm in SEARCHED:
                    gains, ratios = self._compared(arm, points)
                    if gains:
                        rows.append((name, arm, len(gains), _spread(gains, "+.2f"), _spread(ratios, ".2f", "x")))
        if not rows:
            return ""
        header = ("against", "arm", "seeds", "points of accuracy at no more energy", "energy ratio at no less accuracy")
        note = "Median over seeds, range in brackets; - where no network of the arm is as cheap, or as accurate."
        return f"## Against the fixed network\n\n{note}\n\n" + _table(header, rows)

    def volumes(self, arm: str) -> list[float]:
        """Hypervolume of test error and energy share for each seed."""
        return [
            hypervolume([[p["error"], p["energy_j"] / self.whole_j] for p in found], REFERENCE)
            for found in self.fronts(arm).values()
        ]

    def _volumes(self) -> str:
        arms = [arm for arm in ("uniform bits", "knapsack bits", *SEARCHED) if self.arms.get(arm)]
        rows = [(arm, len(self.volumes(arm)), _spread(self.volumes(arm), ".4f")) for arm in arms]
        note = f"Of test error and energy, up to an error of {REFERENCE[0]} and {REFERENCE[1]}x the energy of 8 bits."
        return f"## Hypervolume\n\n{note}\n\n" + _table(("arm", "seeds", "median [range]"), rows)

    def _effort(self) -> str:
        rows = []
        for arm in (*SEARCHED, "mpnas-chip"):
            found = [r for job, r in self.results.items() if job.startswith(f"search/{self.data}/{arm}/")]
            if found:
                rows.append((arm, len(found), found[0]["evaluations"], f"{found[0]['image_passes']:,}",
                             f"{np.median([r['search_s'] for r in found]):.0f}",
                             f"{100 * max(max(r['usage'].values()) for r in found):.1f} %"))  # fmt: skip
        knapsack = self.results.get(f"knapsack/{self.data}")
        if knapsack:
            rows.append(("knapsack", 1, knapsack["evaluations"], f"{knapsack['image_passes']:,}",
                         f"{knapsack['search_s']:.0f}", ""))  # fmt: skip
        header = ("search", "runs", "evaluations", "image passes", "median seconds", "largest use of a limit")
        text = "## What a search cost\n\n" + _table(header, rows)
        for job, found in self.results.items():
            if job.startswith(f"tau/{self.data}/"):
                seed = job.rsplit("/", 1)[1]
                text += (
                    f"\n\nSupernet of seed {seed}: Kendall tau {found['tau']:.2f} (p = {found['p']:.1g}) between "
                    f"its loss and the test error of {found['n']} networks trained from scratch."
                )
        if knapsack:
            text += (
                f"\n\nKnapsack: proven gap {knapsack['gap']:.1g}; sums of sensitivities against measured losses of 20 "
                f"random assignments: R^2 {knapsack['r2']:.2f}, Kendall tau {knapsack['tau']:.2f}."
            )
        return text

    def plot(self, path: Path) -> None:
        """Error against energy and latency: MP-NAS and the fixed networks, and MP-NAS and the other searches."""
        import matplotlib.pyplot as plt

        from codesign.plots import plot_pareto

        runs = {
            arm: [[_trial(p) for p in found] for found in self.fronts(arm).values()]
            for arm in ("uniform bits", "knapsack bits", *SEARCHED)
            if arm in self.arms
        }
        flat = {arm: found[0] if len(found) == 1 else found for arm, found in runs.items()}
        groups = [[arm for arm in group if arm in flat] for group in (("uniform bits", "knapsack bits", *SEARCHED[:2]),
                                                                      ("mpnas", *SEARCHED[2:]))]  # fmt: skip
        groups = [group for group in groups if len(group) > 1]
        if not groups:
            return
        figure, axes = plt.subplots(
            2, len(groups), figsize=(6.5 * len(groups), 9), sharey=True, layout="constrained", squeeze=False
        )
        for column, group in enumerate(groups):
            for row, x in enumerate(("energy_j", "latency_s")):
                some = {arm: flat[arm] for arm in group}
                plot_pareto(some, x=x, y="error", order=tuple(flat), ax=axes[row, column])
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _trial(point: Point) -> Trial:
    return Trial(tuple(point["arch"]), {name: point[name] for name in ("error", "energy_j", "latency_s")})


def _median(values: Sequence[float]) -> float:
    """The median, in which what is not known counts as the least."""
    return float(np.median([value if np.isfinite(value) else -np.inf for value in values])) if values else np.nan


def _spread(values: Iterable[float], form: str, unit: str = "") -> str:
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return "-"
    middle = format(float(np.median(known)), form) + unit
    return middle if len(known) == 1 else f"{middle} [{min(known):{form}}, {max(known):{form}}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
