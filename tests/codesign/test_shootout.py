"""Shootouts and sensitivities from the command line: budgets, resume, side by side, and what they print."""

import copy
import dataclasses
import json
import re
import time

import numpy as np
import pytest
from small_task import write_files

import codesign.shootout as codesign_shootout
from codesign.accuracy import evaluate
from codesign.cli import main
from codesign.launch import prepared
from codesign.metrics import quantity
from codesign.quant import set_bits
from codesign.run import load_run
from codesign.run_spec import RunSpec
from codesign.sensitivity import Sensitivities
from codesign.shootout import STRATEGIES, Arena, Shootout, final_name, n_distinct
from codesign.shootout_report import ShootoutReport, spread
from codesign.stopwatch import Stopwatch
from codesign.trial import Trial
from codesign.weight_training import Stopped

SPEC = {
    "family": "bits", "network": "small_task:net", "weights": "w.safetensors", "dataset": "d.npz", "normalize": "0/1",
    "space_settings": {"bits": [2, 4, 8]}, "n_search": 64, "network_settings": {"calibration": 64}, "objective": "loss",
    "supernet_settings": {"batch_size": 32},
}  # fmt: skip
ARGS = "--weights w.safetensors --data d.npz --normalize 0/1 --bits 2,4,8 --n-search 64 --network-set calibration=64"


@pytest.fixture
def place(tmp_path, monkeypatch):
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def codesign(command):
    return main(command.split())


def shootout(**changes):
    limits = (("energy_j=60%",), ("energy_j=40%", "latency_s=0.9x"))
    given = {"strategies": ("greedy", "random"), "limits": limits, "evaluations": 20, "seeds": 2} | changes
    return Shootout(RunSpec.from_fields(SPEC), **given)


def test_every_strategy_is_given_the_same_passes(place):
    arena = Arena(shootout(evaluations=60, strategies=STRATEGIES), "s")
    problem, task = arena.problem(0), arena.task
    budget = 60 * task.evaluation_passes
    for strategy in STRATEGIES:
        spec = arena.shootout.budgeted(problem, strategy, ("energy_j=60%",), 1)
        training = spec.search_strategy().training_passes(problem)
        spent = training + spec.trials * task.evaluation_passes
        assert budget - task.evaluation_passes < spent <= budget and training <= budget // 2
        assert spec.seed == 1 and spec.data_seed == 0
        assert (training > 0) == (strategy not in ("haq", "reinforce", "nsga2", "random"))


def test_a_shootout_that_is_stopped_goes_on_to_the_same(place):
    whole = Arena(shootout(), "whole")
    assert whole.run()
    for minutes in (0.0, float("inf")):
        part = Arena(shootout(), "part", resume=True)
        done = part.run(minutes=minutes) if minutes else part._searched("greedy", 0, 0, False, None)

    def same(row):
        return {name: value for name, value in row.items() if name not in ("search_s", "wall_s", "processor_s")}

    def scores(arena):
        return {name: same(scores) for name, scores in arena.finals.items()}

    assert done and scores(part) == scores(whole)
    assert list(map(same, part.rows)) == list(map(same, whole.rows)) and len(whole.rows) == 2 * 2 * 2
    for row in whole.rows:
        run = load_run(whole.place(row["strategy"], row["limit"], row["seed"]))
        assert run.trial().arch == tuple(row["arch"]) and max(row["usage"].values()) <= 1
        assert row["image_passes"] <= 20 * whole.task.evaluation_passes
        assert row["distinct"] == len({trial.arch for trial in run.trials}) <= row["evaluations"] == len(run.trials)
        training = run.spec.search_strategy().training_passes(whole.problem(row["limit"]))
        assert row["image_passes"] == training + row["distinct"] * whole.task.evaluation_passes
        assert row["search_s"] > 0 and row["processor_s"] > 0
    assert all(scores["wall_s"] > 0 and scores["processor_s"] > 0 for scores in whole.finals.values())


def test_a_network_that_is_asked_for_again_is_charged_once_unless_its_weights_have_changed():
    trials = [Trial((0,), {"loss": 1.0}), Trial((0,), {"loss": 1.0}), Trial((0,), {"loss": 2.0}), Trial((1,), {})]
    assert n_distinct(trials) == 3
    assert n_distinct([*trials, Trial((2,), {"energy_j": 1.0}, {"energy_j": 0.1})]) == 3


def test_a_search_that_fails_is_kept_as_failed_and_the_others_go_on(place, capsys):
    command = f"shootout small_task:net {ARGS} --strategies milp,random --limit edp_js=0.6x --evaluations 20 --seeds 2 "
    assert codesign(command + "--out s") == 0
    said = capsys.readouterr()
    message = "limits must be on sums"
    assert message in said.err and "milp under edp_js=0.6x, seed 0; milp under edp_js=0.6x, seed 1: " in said.out
    assert said.out.count(message) == 1 and "2 searches, and 2 that failed; medians over 2 seeds" in said.out
    assert next(line.split() for line in said.out.splitlines() if line.startswith("milp")) == ["milp", "failed"]
    rows = [json.loads(path.read_bytes()) for path in sorted((place / "s").glob("milp/*/*/row.json"))]
    assert len(rows) == 2 and all(message in row["failed"] and row["strategy"] == "milp" for row in rows)
    assert codesign("shootout --out s --resume") == 0
    assert message not in capsys.readouterr().err
    assert codesign("shootout --out s --resume --retry") == 0
    assert capsys.readouterr().err.count(message) == 2


def test_a_training_that_diverges_ends_its_own_search_or_tuning_alone(place, monkeypatch):
    arena = Arena(shootout(limits=(("energy_j=50%",),), seeds=1, tune_epochs=1), "s")
    real, tune = codesign_shootout.search_with, codesign_shootout.train_quantized

    def search_with(spec, *args, **kwargs):
        if spec.strategy == "greedy":
            raise Stopped("the loss must stay finite")
        return real(spec, *args, **kwargs)

    def diverge(network, bits, *args):
        if set(bits.values()) == {(8, 8)}:
            raise FloatingPointError("numbers must stay finite")
        return tune(network, bits, *args)

    monkeypatch.setattr(codesign_shootout, "search_with", search_with)
    monkeypatch.setattr(codesign_shootout, "train_quantized", diverge)
    assert arena.run()
    failed, found = arena.rows
    assert failed["failed"] == "the loss must stay finite" and failed["strategy"] == "greedy" and "arch" in found
    reference = final_name("tuned", arena.task.space.reference)
    assert {name for name, scores in arena.finals.items() if "failed" in scores} == {reference}
    said = str(ShootoutReport.load("s"))
    assert "seed 0: the loss must stay finite" in said and f"{reference}: numbers must stay finite" in said
    monkeypatch.setattr(codesign_shootout, "search_with", real)
    monkeypatch.setattr(codesign_shootout, "train_quantized", tune)
    assert Arena(arena.shootout, "s", resume=True).run(retry=True)
    assert not any("failed" in one for one in (*arena.rows, *arena.finals.values()))


def test_what_the_machine_is_the_cause_of_is_no_failure_of_a_search(place, monkeypatch):
    arena = Arena(shootout(), "s")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(codesign_shootout, "search_with", full)
    with pytest.raises(OSError, match="No space left"):
        arena.run()
    assert arena.rows == []


def test_seconds_add_up_where_a_search_is_stopped_and_gone_on_with(place, monkeypatch):
    arena, real = Arena(shootout(), "s"), codesign_shootout.search_with

    def interrupted(*args, **kwargs):
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass
        raise KeyboardInterrupt

    for stopped in (1, 2):
        monkeypatch.setattr(codesign_shootout, "search_with", interrupted)
        with pytest.raises(KeyboardInterrupt):
            arena._searched("random", 0, 0, False, None)
        spent = json.loads((arena.place("random", 0, 0) / "spent.json").read_bytes())
        assert spent["wall_s"] >= 0.5 * stopped and spent["processor_s"] >= 0.5 * stopped
    monkeypatch.setattr(codesign_shootout, "search_with", real)
    assert arena._searched("random", 0, 0, False, None)
    assert arena.rows[0]["search_s"] > spent["wall_s"] and arena.rows[0]["processor_s"] > spent["processor_s"]


def test_what_work_has_taken_is_kept_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr("codesign.stopwatch.KEEP_EVERY_S", 0.01)
    path = tmp_path / "spent.json"
    with Stopwatch(path):
        while not path.exists():
            time.sleep(0.01)
    first = Stopwatch(path).spent
    with Stopwatch(path) as watch:
        time.sleep(0.02)
    assert watch.spent == Stopwatch(path).spent and watch.spent.wall_s >= first.wall_s + 0.02


def test_two_processes_do_not_do_the_same_search(place):
    first, second = Arena(shootout(), "s"), Arena(shootout(), "s", resume=True)
    from codesign.run_spec import open_run

    spec = first.shootout.budgeted(first.problem(0), "random", first.shootout.limits[0], 0)
    with open_run(first.place("random", 0, 0), spec, resume=True):
        assert not second._searched("random", 0, 0, False, None)
    assert second._searched("random", 0, 0, False, None)


def test_tuned_networks_are_trained_alike_from_the_given_weights(place):
    arena = Arena(shootout(strategies=("random",), limits=(("energy_j=50%",),), seeds=1, tune_epochs=1), "s")
    assert arena.run()
    tuned = {name: scores for name, scores in arena.finals.items() if name.startswith("tuned")}
    space = arena.task.space
    widest = max(bits for bits in space.bits if arena.problem(0).feasible(space.uniform(bits)))
    archs = (space.reference, space.uniform(widest), arena.rows[0]["arch"])
    assert set(tuned) == {final_name("tuned", arch) for arch in archs}
    set_bits(exact := copy.deepcopy(arena.task.network), None)
    in_float = arena.finals[final_name("float", space.reference)]
    assert in_float["loss"] == evaluate(exact, arena.task.data.test)["loss"]
    two_bits = arena.finals[final_name("test", space.uniform(2))]["error"]
    assert all(scores["error"] < two_bits for scores in tuned.values())


def test_the_command_prints_and_draws_and_goes_on(place, capsys):
    command = f"shootout small_task:net {ARGS} --strategies greedy,random --limit energy_j=60% --limit energy_j=40% "
    assert codesign(command + "--evaluations 20 --seeds 2 --out s --minutes 0") == 0
    assert "not finished" in capsys.readouterr().out
    assert codesign("shootout --out s --resume") == 0
    said = capsys.readouterr().out
    assert "greedy" in said and "hypervolume, energy" in said and max(map(len, said.splitlines())) <= 130
    assert (place / "s" / "energy.png").exists()
    assert codesign("shootout --out s --report") == 0
    assert capsys.readouterr().out == said
    assert codesign(command + "--evaluations 21 --seeds 2 --out s --resume") == 2
    assert "it must hold this shootout" in capsys.readouterr().err


@pytest.mark.parametrize(("bits", "widest"), [((2, 4, 8), 8), ((2, 4), 4)])
def test_both_ends_of_the_range_of_each_limit_are_printed_before_anything_is_searched(place, capsys, bits, widest):
    command = f"shootout small_task:net {ARGS} --bits {','.join(map(str, bits))} --limit energy_j=60% "
    assert codesign(command + "--limit energy_j=40%,frames_per_s=30% --out s --minutes 0") == 0
    said = capsys.readouterr().err.splitlines()
    assert "in float, " in said[0] and f"at {widest} bits" in said[0]
    assert re.split("  +", said[2].strip())[:2] == ["cheapest", f"at {widest} bits"]
    arena = Arena(shootout(), "other")
    free = dataclasses.replace(arena.shootout.spec, space_settings={"bits": list(bits)}).problem()
    ends = [quantity("energy_j", free.price(free.space.uniform(width)).energy_j) for width in (2, widest)]
    assert [re.split("  +", line)[:3] for line in said[4:6]] == [["energy", *ends]] * 2
    assert said[6].startswith("throughput") and said[6].endswith("30.0 %")


def test_medians_and_hypervolumes_are_those_of_their_formulas():
    record = {"limits": [["energy_j=60%"], ["energy_j=20%"]], "seeds": 2, "reference": {"energy_j": 2.0},
              "tune_limits": [0], "tune_epochs": 0, "spec": {"objective": "loss"}}  # fmt: skip
    rows = [
        {"strategy": "random", "limit": limit, "seed": seed, "arch": [limit, seed], "evaluations": 1, "search_s": 1.0,
         "image_passes": 1, "usage": {"energy_j": 1.0}, "metrics": {"energy_j": (1.0, 0.5)[limit], "loss": 1.0}}
        for limit in (0, 1) for seed in (0, 1)
    ]  # fmt: skip
    finals = {final_name("test", [limit, seed]): {"error": 0.1 + 0.2 * limit + 0.1 * seed} for limit in (0, 1)
              for seed in (0, 1)}  # fmt: skip
    report = ShootoutReport(record, rows, finals)
    throughput = {"energy_j": 1.0, "frames_per_s": 8.0}
    of_speed = dataclasses.replace(report, record={**record, "limits": [["frames_per_s=9"]], "reference": {
        "frames_per_s": 2.0}}, rows=[{**rows[0], "metrics": throughput}])  # fmt: skip
    assert of_speed.hypervolumes("random", "frames_per_s") == [pytest.approx((0.9 - 0.1) * (1 - 2 / 8))]
    first = (0.9 - 0.1) * (1 - 0.5) + (0.9 - 0.3) * (0.5 - 0.25)
    second = (0.9 - 0.2) * (1 - 0.5) + (0.9 - 0.4) * (0.5 - 0.25)
    assert report.hypervolumes("random", "energy_j") == pytest.approx([first, second])
    said = str(report)
    assert "up to a test error of 90 % and 1x of what the network that limits refer to takes" in said
    total = [line.split() for line in said.splitlines() if line.startswith("all ")]
    hours = sum(1.0 for _ in rows) / 3600
    assert total == [["all", str(len(rows) + len(finals)), f"{hours:.2f}", "0.00"]]
    assert spread([1.0, 3.0, 2.0], "{:.1f}") == "2.0 [1.0, 3.0]" and spread([], "{}") == "-"
    assert spread([2.0, 2.0], "{:.1f}") == "2.0"


def test_strategies_that_found_the_same_are_drawn_once_and_the_widest_uniform_bits_within_a_limit_are_told():
    uniform = [{"bits": b, "arch": [b], "metrics": {"energy_j": b / 8}} for b in (2, 4, 8)]
    record = {"limits": [["energy_j=0.6"], ["energy_j=0.3"]], "seeds": 1, "reference": {"energy_j": 1.0},
              "uniform": uniform, "tune_limits": [], "tune_epochs": 0,
              "spec": {"objective": "loss", "n_test": 400}}  # fmt: skip
    energy = (0.48, 0.24)
    rows = [
        {"strategy": name, "limit": i, "seed": 0, "arch": [10 + i + 2 * (name == "random")], "evaluations": 1,
         "search_s": 1.0, "processor_s": 1.0, "image_passes": 1, "usage": {"energy_j": 0.8},
         "metrics": {"energy_j": energy[i], "loss": 1.0}}
        for name in ("milp", "greedy", "random") for i in (0, 1)
    ]  # fmt: skip
    errors = {2: 0.4, 4: 0.3, 8: 0.1, 10: 0.2, 11: 0.3, 12: 0.25, 13: 0.35}
    finals = {final_name("test", [arch]): {"error": error} for arch, error in errors.items()}
    finals["float 8"] = {"error": 0.05}
    report = ShootoutReport(record, rows, finals)
    assert [report.widest_uniform(i)["bits"] for i in (0, 1)] == [4, 2]  # limits of 0.6 and 0.3
    said = str(report)
    assert re.search(r"uniform +70.00 at 4 bits +60.00 at 2 bits", said)
    assert "90.00 at 8 bits, 95.00 in float, standard error 2.23" in said  # of an error of 0.275 on 400 images
    ax = report.plot()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["uniform bits", "milp = greedy", "random"]
    single = dataclasses.replace(report, record={**record, "limits": [["energy_j=0.6"]]}, rows=rows[::2])
    labels = [text.get_text() for text in single.plot().get_yticklabels()]
    assert labels == ["milp = greedy", "random", "uniform 4 bits"]
    assert "hypervolume" not in str(single)


def test_sensitivities_from_the_command_line_are_those_of_the_function(place, capsys):
    assert codesign(f"sensitivity small_task:net {ARGS} --out s.npz --plot s.png") == 0
    said = capsys.readouterr().out
    assert "Kendall tau" in said and "loss" in said.lower() and max(map(len, said.splitlines())) <= 110
    found = Sensitivities.load("s.npz")
    spec, data = prepared(RunSpec.from_fields(SPEC))
    from codesign.family import family

    task = family("bits").task(spec, data, place, "cpu")
    arch = list(task.space.uniform(8))
    arch[2] = 0
    loss = task.accuracy()(tuple(arch))["loss"]
    assert found.base_loss + found.increase[1, 0, 2] == pytest.approx(loss, abs=1e-12)
    assert codesign(f"sensitivity small_task:net {ARGS} --checks 0 --input-bits 8 --json") == 0
    record = json.loads(capsys.readouterr().out)
    assert np.array(record["increase"]).shape == (len(task.space.searched), 3, 1) and "tau" not in record


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("shootout small_task:net {} --strategies best --out s", "strategies must be among"),
        ("shootout small_task:net {} --limit energy_j=0.01x --out s", "must meet every limit"),
        ("shootout small_task:net {} --tune-limits 7 --out s", "tune_limits must be from 0 to 3"),
        ("shootout small_task:net {} --tune-limits 0,x --out s", "from 0 to 3, such as 0,1; got 'x' in '0,x'"),
        ("shootout small_task:net {} --tune-limits -1 --out s", "got '-1'"),
        ("shootout small_task:net {} --hardware-choice rows=8,16 --out s", "got choices of rows; set such a field"),
        ("shootout small_task:net {} --evaluations 2 --out s", "evaluations must be at least 10"),
        ("shootout --out nowhere --report", "must be the directory of a shootout"),
        ("sensitivity small_task:net {} --checks 1", "must be 0 or at least 2"),
        ("sensitivity small_task:net {} --out s.txt", "must end in .npz"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(place, capsys, command, message):
    assert codesign(command.format(ARGS)) == 2
    assert message in capsys.readouterr().err
