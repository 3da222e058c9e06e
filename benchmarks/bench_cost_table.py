"""Cost tables: time to build one, and networks priced a second."""

from __future__ import annotations

from functools import partial

import numpy as np
from measure import Report, seconds, timed

from codesign.cost_table import cost_table
from codesign.layer_table import layer_table
from codesign.nets.mobilenetv2 import MobileNetV2Space
from codesign.space import AbstractSpace, BitwidthSpace
from hwmodels import BitFusion, estimate, networks

TARGET_S, TARGET_PER_S, SEED = 0.2, 1e6, 0


def build(report: Report, name: str, space: AbstractSpace, target_s: float | None) -> None:
    """Time of a table without and with its check against 20 simulations, for each objective."""
    for objective in ("latency", "energy", "edp"):
        chip = BitFusion(objective=objective)  # type: ignore[arg-type]
        bare = timed(lambda chip=chip: cost_table(space, chip, n_checks=0), runs=15)
        checked = timed(lambda chip=chip: cost_table(space, chip), runs=5)
        ratio = f"{bare.processor / target_s:.2f} of {target_s} s" if target_s else ""
        report(
            f"{name:<25}{objective:<8}{bare!s:<30}{seconds(bare.processor):>9}   {checked!s:<30}"
            f"{seconds(checked.processor):>9}   {ratio}"
        )


def price(report: Report, name: str, space: AbstractSpace) -> None:
    """Networks a second."""
    table = cost_table(space, BitFusion(), n_checks=0)
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(space.option_counts, size=(10**6, len(space.choices)))
    for dtype in (np.int64, np.int16):
        times = timed(partial(table.price, drawn.astype(dtype)), runs=15)
        rate = len(drawn) / times.processor
        report(
            f"{name:<25}{dtype.__name__:<8}{times!s:<30}{seconds(times.processor):>9}   {rate / 1e6:.2f} million/s, "
            f"{rate / TARGET_PER_S:.1f} times the target"
        )


def main() -> None:
    """Run all of it."""
    report = Report("Cost tables of MobileNetV2 blocks and of bitwidths", "scipy")
    mp_nas = MobileNetV2Space.preset("imagenet")
    spaces: dict[str, AbstractSpace] = {
        f"{len(mp_nas.choices)} blocks x {len(mp_nas.options)} options": mp_nas,
        "ResNet-18, 2/4/8 bits": BitwidthSpace(networks.resnet18(), bits=(2, 4, 8)),
        "MobileNetV2, 2/4/8 bits": BitwidthSpace(networks.mobilenet_v2(), bits=(2, 4, 8)),
    }
    codes, _ = mp_nas.terms().distinct_layers()
    report(f"{'building a table':<33}{'alone':<30}{'processor':>9}   {'with 20 simulations':<30}{'processor':>9}")
    for name, space in spaces.items():
        build(report, name, space, TARGET_S if space is mp_nas else None)
    terms = timed(mp_nas.terms)
    distinct = timed(mp_nas.terms().distinct_layers)
    report(f"\nof the first: terms {terms!s}, distinct layers {distinct!s} ({len(codes)} of them), then the kernel")

    rng = np.random.default_rng(SEED)
    arch = mp_nas.sample(rng)
    made = timed(lambda: mp_nas.workload(arch))
    simulated = timed(lambda: estimate(mp_nas.workload(arch), BitFusion()).energy_j)
    report(f"one network simulated instead of looked up: {simulated!s}; workload() takes {made!s} of it")

    report(f"\n{'pricing 10^6 networks':<25}{'archs':<8}{'':<30}{'processor':>9}")
    for name, space in spaces.items():
        price(report, name, space)

    resnet20 = networks.resnet20()
    table = timed(lambda: layer_table(resnet20, BitFusion(), range(2, 9), range(2, 9)), runs=10)
    report("\nratios are of processor time, so they hold on one core; two share the kernel's part")
    report(f"layer_table of ResNet-20, 2 to 8 bits ({len(resnet20.layers)} x 7 x 7): {table!s}")
    report.close()


if __name__ == "__main__":
    main()
