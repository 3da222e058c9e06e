"""``codesign pareto`` gathers runs, compares them and draws them."""

import dataclasses
import json

import pytest

from codesign.cli import main
from codesign.fronts import Comparison, gather
from codesign.pareto import hypervolume
from codesign.run_spec import RunSpec
from codesign.trial import LOG_NAME, Trial


@pytest.fixture
def codesign(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(line):
        try:
            code = main(line.split())
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def write_run(folder, points, strategy=None, seed=0, limit=None, objective="error", **changes):
    """A run whose trials have an error and an energy each."""
    folder.mkdir(parents=True)
    trials = [
        Trial((i,), {objective: e, "energy_j": j, "latency_s": 1.0}, {}, i, seed) for i, (e, j) in enumerate(points)
    ]
    (folder / LOG_NAME).write_text("".join(f"{trial.to_json()}\n" for trial in trials))
    limits = {} if limit is None else {"energy_j": limit}
    config = {"problem": {"limits": limits, "objective": objective}, "seed": seed}
    (folder / "config.json").write_text(json.dumps(config))
    if strategy:
        texts = tuple(f"{name}={value}" for name, value in limits.items())
        RunSpec(strategy=strategy, seed=seed, limits=texts, objective=objective, **changes).write(folder)


A, B, C = [(0.3, 1.0), (0.1, 2.0)], [(0.2, 1.5), (0.15, 3.0)], [(0.4, 0.5), (0.05, 4.0)]


def test_runs_on_one_chip_are_one_group_wherever_its_file_lies(codesign, tmp_path):
    for name, rows in (("mine.yaml", 4), ("copy.yaml", 4), ("other.yaml", 8)):
        (tmp_path / name).write_text(f"preset: bitfusion\nrows: {rows}\n")
        write_run(tmp_path / "runs" / name[:4], A, "mpnas", rows, 2.0, hardware=str(tmp_path / name))
    groups = {found.name.rpartition("/")[2]: found.group for found in gather([str(tmp_path / "runs")])}
    assert groups["mine"] == groups["copy"] != groups["othe"]


def test_runs_that_differ_in_seed_and_limits_alone_are_one_group_and_their_spread_is_told(codesign, tmp_path):
    write_run(tmp_path / "f0" / "mpnas" / "x", A, "mpnas", 0, 2.0)
    write_run(tmp_path / "f0" / "mpnas" / "y", B, "mpnas", 0, 4.0)
    write_run(tmp_path / "f1" / "mpnas" / "x", C, "mpnas", 1, 4.0)
    write_run(tmp_path / "f1" / "random", B, "random", 1, 4.0)
    record = json.loads(codesign("pareto f0 f1 --objectives error,energy_j --reference 0.5,5 --json")[1])
    mpnas, random = record["groups"]["mpnas"], record["groups"]["random"]
    assert mpnas["seeds"] == 2 and random["seeds"] == 1 and len(mpnas["runs"]) == 3
    expected = [hypervolume(A + B, (0.5, 5)), hypervolume(C, (0.5, 5))]
    assert mpnas["hypervolumes"] == pytest.approx(expected)
    assert mpnas["median"] == pytest.approx(sum(expected) / 2)
    points = [(t["metrics"]["error"], t["metrics"]["energy_j"]) for t in record["front"]]
    assert points == [(0.05, 4.0), (0.1, 2.0), (0.2, 1.5), (0.2, 1.5), (0.3, 1.0), (0.4, 0.5)]
    assert Comparison.of(gather([str(tmp_path / "f0"), str(tmp_path / "f1")])).limits == {"energy_j": [2.0, 4.0]}


def test_runs_that_differ_in_more_are_groups_of_their_own(codesign, tmp_path):
    write_run(tmp_path / "a", A, "mpnas")
    write_run(tmp_path / "b", B, "mpnas", hardware_settings={"rows": 8})
    write_run(tmp_path / "c", C)
    assert [run.group for run in gather([str(tmp_path / name) for name in "abc"])] == [
        f"mpnas ({tmp_path / 'a'})", f"mpnas ({tmp_path / 'b'})", str(tmp_path / "c"),
    ]  # fmt: skip


def test_the_table_states_the_reference_and_names_equal_points_once(codesign, tmp_path):
    write_run(tmp_path / "a", A)
    write_run(tmp_path / "b", A)
    code, out, _ = codesign("pareto a b --objectives error,energy_j")
    assert code == 0
    assert "+ 1 equal" in out and "4 of 4 feasible trials are on the joint front of all runs" in out
    assert out.splitlines()[-1] == "error 0.3, energy_j 2"
    assert max(map(len, out.splitlines())) <= 80


def test_a_run_without_a_trial_yet_is_left_out_and_named(codesign, tmp_path, caplog):
    write_run(tmp_path / "a", A, "random")
    begun = tmp_path / "b"
    begun.mkdir()
    RunSpec(strategy="random").write(begun)
    assert codesign("pareto a b --objectives error,energy_j")[0] == 0
    assert "Left out, as they have no trial yet: b." in caplog.text
    code, _, err = codesign("pareto b")
    assert code == 2 and "trials.jsonl" in err


def test_runs_on_other_data_are_said(codesign, tmp_path, caplog):
    write_run(tmp_path / "a", A, "random")
    write_run(tmp_path / "b", B, "random")
    codesign("pareto a b --objectives error,energy_j")
    assert not caplog.text
    write_run(tmp_path / "c", C, "random", dataset="cifar10")
    codesign("pareto a b c --objectives error,energy_j")
    assert "Errors on different data do not compare, but these runs have: cifar10 (c), digits (a)." in caplog.text


def test_the_objective_is_that_of_the_runs_where_they_have_no_error(codesign, tmp_path):
    write_run(tmp_path / "a", A, objective="loss")
    assert json.loads(codesign("pareto a --json")[1])["objectives"] == ["loss", "latency_s", "energy_j"]


def test_json_and_plots_are_written_to_files(codesign, tmp_path):
    for seed, points in enumerate((A, B, C)):
        write_run(tmp_path / f"a{seed}", points, "mpnas", seed, 3.0)
    code, out, _ = codesign("pareto a0 a1 a2 --objectives error,energy_j --color latency_s --plot p.png --json f.json")
    assert code == 0 and "3" in out
    assert json.loads((tmp_path / "f.json").read_text())["groups"]["mpnas"]["seeds"] == 3
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert codesign("pareto a0 a1 a2 --plot grid.svg")[0] == 0
    assert (tmp_path / "grid.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--reference 1,b", "must be numbers"),
        ("--reference 1", "must have a number for each of"),
        ("--color latency_s", "it goes with two objectives"),
        ("--json out.txt", "must end in .json"),
        ("--json no/such/folder.json", "its folder must exist"),
        ("--objectives error,area_mm2", "area_mm2"),
    ],
)
def test_bad_options_are_named(options, message, codesign, tmp_path):
    write_run(tmp_path / "a", A)
    code, _, err = codesign(f"pareto a {options}")
    assert code == 2 and message in err and len(err.splitlines()) == 1


def test_more_frames_are_better(tmp_path):
    trials = [
        Trial((i,), {"error": e, "frames_per_s": f}, {}, i)
        for i, (e, f) in enumerate([(0.1, 10.0), (0.2, 30.0), (0.3, 20.0)])
    ]
    (tmp_path / LOG_NAME).write_text("".join(f"{trial.to_json()}\n" for trial in trials))
    comparison = Comparison.of(gather([str(tmp_path)]), ("error", "frames_per_s"))
    assert [trial.number for _, trial in comparison.front] == [0, 1]
    assert comparison.reference == (0.3, 10.0)
    assert comparison.hypervolumes == {str(tmp_path): [pytest.approx((0.3 - 0.2) * (30 - 10))]}


def test_specifications_that_differ_in_limits_alone_are_written_alike(tmp_path):
    spec = RunSpec(limits=("energy_j=0.4x",))
    assert dataclasses.replace(spec, limits=()).to_yaml() == RunSpec().to_yaml()
