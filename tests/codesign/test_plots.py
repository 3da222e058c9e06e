"""The plots draw what they are given; how they look was looked at."""

import math

import matplotlib as mpl
import numpy as np
import pytest
from toys import Roofline, network

from codesign.nets.mobilenetv2 import Block, MobileNetV2Space
from codesign.plots import (
    plot_bits,
    plot_blocks,
    plot_front_grid,
    plot_layers,
    plot_pareto,
    plot_roofline,
    short_names,
)
from codesign.trial import Trial
from hwmodels import BitFusion, estimate, networks
from hwmodels.cost import CostReport, LayerCost

mpl.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def trial(error, latency_s, energy_j=1e-6, violations=None):
    return Trial((), {"error": error, "latency_s": latency_s, "energy_j": energy_j}, violations or {})


RUN = [trial(0.1, 1e-3), trial(0.05, 2e-3), trial(0.07, 3e-3), trial(0.01, 5e-4, violations={"energy_j": 1.0})]


def offsets(ax):
    return [np.asarray(c.get_offsets()) for c in ax.collections]


def test_front_and_dominated_points_are_drawn_apart_in_readable_units_and_infeasible_ones_not_at_all():
    ax = plot_pareto({"run": RUN})
    dominated, front = offsets(ax)
    assert dominated.tolist() == [pytest.approx([3.0, 7.0])]
    assert sorted(front.tolist()) == [pytest.approx([1.0, 10.0]), pytest.approx([2.0, 5.0])]
    assert ax.get_xlabel() == "latency (ms)" and ax.get_ylabel() == "error (%)"
    assert ax.get_legend().get_texts()[0].get_text() == "run (own front: 2 of 3)"


def test_limits_and_further_networks_are_drawn_where_they_are():
    ax = plot_pareto(
        {"run": RUN}, limits={"latency_s": 4e-3, "energy_j": 1.0}, marks={"8 bits": {"latency_s": 6e-3, "error": 0.02}}
    )
    lines = {tuple(line.get_xdata()) for line in ax.lines}
    assert (4.0, 4.0) in lines and (6.0,) in lines
    assert {"8 bits", "limit"} <= {text.get_text() for text in ax.texts}


def test_a_third_metric_is_shown_as_colour_with_its_unit():
    ax = plot_pareto({"run": RUN, "other": [trial(0.2, 1e-4, 5e-6)]}, color="energy_j")
    assert ax.figure.axes[1].get_ylabel() == "energy (µJ)"


def test_runs_look_alike_in_all_plots_that_are_given_one_order():
    def looks(*names, **order):
        ax = plot_pareto(dict.fromkeys(names, RUN), **order)
        fronts = ax.collections[1::2]  # behind the dominated points of each
        return [(tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tolist()) for c in fronts]

    (alone,) = looks("b", order=("a", "b"))
    assert looks("a", "b") == [*looks("a"), alone] == looks("a", "b", order=("a",))
    assert looks("b") != [alone]


def test_trials_that_lack_a_metric_are_named_with_those_there_are():
    with pytest.raises(ValueError, match="must have loss, error; the metrics there are: energy_j, error, latency_s"):
        plot_pareto({"run": RUN}, x="loss")
    with pytest.raises(ValueError, match="none"):
        plot_pareto({})
    broken = [trial(math.nan, 1.0), trial(0.1, 1.0)]
    assert sum(map(len, offsets(plot_pareto({"run": broken})))) == 1


SEEDS = [
    [trial(0.4, 1e-3), trial(0.2, 2e-3)],
    [trial(0.3, 1e-3), trial(0.1, 3e-3)],
    [trial(0.5, 1e-3), trial(0.25, 2e-3)],
]


def test_seeds_are_drawn_as_their_median_and_range():
    ax = plot_pareto({"mpnas": SEEDS})
    (steps,) = ax.lines
    assert steps.get_xdata().tolist() == pytest.approx([1.0, 2.0, 3.0])
    assert steps.get_ydata().tolist() == pytest.approx([40.0, 25.0, 20.0])
    (band,) = [c for c in ax.collections if type(c).__name__ in ("PolyCollection", "FillBetweenPolyCollection")]
    corners = np.concatenate([path.vertices for path in band.get_paths()])
    assert corners[:, 1].min() == pytest.approx(10.0) and corners[:, 1].max() == pytest.approx(50.0)
    assert ax.get_legend().get_texts()[0].get_text() == "mpnas (3 seeds: median, range)"


def test_where_half_of_the_seeds_have_nothing_there_is_no_median():
    ax = plot_pareto({"a": [[trial(0.4, 1e-3)], [trial(0.3, 2e-3)]]})
    assert ax.lines[0].get_xdata().tolist() == [2.0]


def test_all_limits_of_a_metric_are_drawn_and_labelled_once():
    ax = plot_pareto({"run": RUN}, color="energy_j", limits={"latency_s": [1e-3, 2e-3], "energy_j": 1e-6})
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert sorted(line.get_xdata()[0] for line in dashed) == pytest.approx([1.0, 2.0])
    assert [text.get_text() for text in ax.texts] == ["limits"]
    assert any(line.get_linestyle() == "--" for line in ax.figure.axes[1].lines)


def test_three_objectives_are_drawn_in_pairs_with_the_joint_front_marked():
    other = [trial(0.2, 1e-4, 5e-6), trial(0.2, 2e-3, 5e-6)]
    axes = plot_front_grid({"run": RUN, "other": other}, limits={"energy_j": 2e-6})
    texts = [text.get_text() for text in axes[1, 1].get_legend().get_texts()]
    assert texts == ["run: 2 of 3", "other: 1 of 2"]
    assert (axes[0, 0].get_ylabel(), axes[1, 0].get_xlabel()) == ("error (%)", "latency (ms)")
    assert (axes[0, 1].get_xlabel(), axes[1, 0].get_ylabel()) == ("energy (µJ)", "energy (µJ)")
    with pytest.raises(ValueError, match="three objectives"):
        plot_front_grid({"run": RUN}, ("error", "energy_j"))


def test_blocks_are_a_table_of_shapes_and_bits():
    space = MobileNetV2Space.preset("tiny")
    blocks = {"blocks.0": Block(6, 3, 1, 8, 4), "blocks.1": Block(1, 7, 0, 2, 6), "chip.rows": 16}
    ax = plot_blocks(blocks, space.block_shapes, "title")
    rows = {}
    for text in ax.texts:
        rows.setdefault(text.get_position()[1], []).append(text.get_text())
    assert list(rows.values()) == [["8", "2"], ["4", "6"], ["6", "1"], ["3", "7"], ["●", "–"], ["8", "16"], ["1", "2"]]
    assert [label.get_text() for label in ax.get_yticklabels()][:2] == ["weight bits", "input bits"]
    with pytest.raises(ValueError, match=r"got chip\.rows"):
        plot_blocks({"chip.rows": 16})


def heights(ax):
    """Total height of the bars at each place."""
    total = {}
    for bar in ax.patches:
        place = round(bar.get_x() + bar.get_width() / 2)
        total[place] = total.get(place, 0) + bar.get_height()
    return [total[place] for place in sorted(total)]


def test_the_bars_of_layers_add_up_to_the_report():
    report = estimate(networks.mobilenet_v2(), BitFusion())
    energy, latency = plot_layers(report)
    assert energy.get_ylabel() == "energy (µJ)" and latency.get_ylabel() == "latency (µs)"
    assert heights(energy) == pytest.approx([cost.energy.total_pj * 1e-6 for cost in report.layers])
    assert heights(latency) == pytest.approx([cost.latency_s * 1e6 for cost in report.layers])
    assert len(latency.get_xticklabels()) == len(report.layers)


def test_a_chip_that_knows_time_alone_gets_one_panel():
    workload = network()
    report = CostReport(workload, Roofline(), [LayerCost(1e-6 * (i + 1), None) for i in range(3)])
    (latency,) = plot_layers(report)
    assert heights(latency) == pytest.approx([1, 2, 3])
    with pytest.raises(ValueError, match="Roofline gives none"):
        plot_roofline(report)


def test_bits_go_up_for_weights_and_down_for_inputs():
    ax = plot_bits(network().with_bits([2, 4, 8], [8, 4, 2]))
    assert [bar.get_height() for bar in ax.patches] == [2, 4, 8, -8, -4, -2]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["fc0", "fc1", "fc2"]


def test_no_layer_is_above_its_roof():
    workload = networks.mobilenet_v2().with_bits(4, 8)
    chip = BitFusion()
    ax = plot_roofline(estimate(workload, chip))
    bandwidth = chip.dram_bits_per_cycle * chip.clock_hz / 8
    peak = chip.peak_macs_per_cycle(4, 8) * chip.clock_hz
    unit = {"G": 1e9, "T": 1e12}[ax.get_ylabel()[len("speed (")]]
    for intensity, speed in np.concatenate(offsets(ax)):
        assert speed * unit <= min(peak, bandwidth * intensity) * 1.001
    assert any(text.get_text() == "w/a 4/8" for text in ax.texts)


def test_names_are_shortened_and_stay_distinct():
    names = [layer.name for layer in networks.mobilenet_v2().layers]
    short = short_names(names)
    assert len(set(short)) == len(names) and max(map(len, short)) <= 18


def test_of_some_metrics_more_is_better_and_the_front_and_its_steps_say_so():
    points = [(0.1, 100.0), (0.2, 300.0), (0.3, 200.0)]  # error, frames per second
    trials = [Trial((i,), {"error": e, "frames_per_s": f, "energy_j": 1.0}, {}, i) for i, (e, f) in enumerate(points)]
    ax = plot_pareto({"run": trials}, x="frames_per_s", y="error")
    assert ax.get_legend().get_texts()[0].get_text() == "run (own front: 2 of 3)"
    (steps,) = [line for line in ax.get_lines() if line.get_drawstyle() == "steps-post"]
    assert sorted(zip(*steps.get_data(), strict=True)) == [(100.0, 10.0), (300.0, 20.0)]  # in percent
    several = plot_pareto({"run": [trials, trials[:1]]}, x="frames_per_s", y="error")
    assert "2 seeds" in several.get_legend().get_texts()[0].get_text()
    axes = plot_front_grid({"run": trials}, ("error", "frames_per_s", "energy_j"))
    assert [text.get_text() for text in axes[1, 1].get_legend().get_texts()] == ["run: 2 of 3"]
