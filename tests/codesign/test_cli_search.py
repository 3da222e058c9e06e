"""``codesign search`` and ``codesign front``: small searches on the digits, killed, gone on with, and repeated."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from codesign.cli import main
from codesign.run import load_run
from codesign.run_spec import RunSpec
from codesign.trial import load_trials

#: A job of a second: what is tested is the run, not the network.
SMALL = (
    "--n-train 128 --n-search 64 --trials 6 --batch-size 3 --supernet-epochs 1 --supernet-set float_epochs=1 "
    "--supernet-set batch_size=32"
)
SEARCH = f"search --strategy random --limit energy_j=0.5x {SMALL}"
MPNAS = f"search --limit energy_j=0.5x --strategy-set steps=4 --strategy-set cost_samples=4 {SMALL}"


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


@pytest.fixture
def refused(codesign):
    def run(line):
        code, _, err = codesign(line)
        assert code == 2 and "Traceback" not in err
        return err.splitlines()[-1]

    return run


def test_a_search_ends_with_a_network_within_its_limits_and_a_directory_that_repeats_it(codesign, tmp_path):
    code, out, _ = codesign(f"{MPNAS} --limit latency_s=0.9x --out a")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"run.yaml", "trials.jsonl", "metrics.jsonl", "front.png", "blocks.png", "layers.png"} <= files
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert set(result["limits"]) == {"energy_j", "latency_s"}
    for name, use in result["limits"].items():
        assert use["usage"] == result["metrics"][name] / use["limit"] <= 1
    run = load_run(tmp_path / "a")
    assert run.trial("best").number == result["trial"]
    priced = run.spec.problem().price(run.trial("best").arch).metrics()
    assert {name: result["metrics"][name] for name in priced} == priced
    assert run.limits["energy_j"] == result["limits"]["energy_j"]["limit"] == 0.5 * result["reference"]["energy_j"]

    code, out, _ = codesign("search a/run.yaml --out b --json")
    assert code == 0 and json.loads(out) == result
    assert load_trials("a") == load_trials("b")
    assert RunSpec.read("a") == RunSpec.read("b")


def test_a_run_that_exists_is_gone_on_with_only_when_asked_and_lends_its_supernet(codesign, refused, tmp_path):
    assert codesign(f"{SEARCH} --out a")[0] == 0
    before = load_trials("a")
    assert "give --resume" in refused(f"{SEARCH} --out a")
    assert "seed: 0 there, 1 here" in refused(f"{SEARCH} --seed 1 --out a --resume")
    assert codesign("search --out a --resume --trials 8")[0] == 0
    assert load_trials("a")[:6] == before and len(load_trials("a")) == 8
    assert codesign(f"{SEARCH} --supernet a --out b")[0] == 0
    assert load_trials("b") == before and not (tmp_path / "b" / "supernet").exists()


def test_a_supernet_is_lent_to_searches_of_the_same_split_alone(codesign, refused):
    assert codesign(f"{SEARCH} --out a")[0] == 0
    assert "--data-seed" in refused(f"{SEARCH} --supernet a --seed 1 --out b")
    assert codesign(f"{SEARCH} --supernet a --seed 1 --data-seed 0 --out c")[0] == 0
    assert RunSpec.read("c").data_seed == 0


def test_settings_of_the_space_that_the_images_contradict_are_refused(refused):
    error = refused(f"{SEARCH} --space-set input_size=16 --out a")
    assert "input_size is 8 and not 16" in error


def test_without_a_folder_a_search_is_kept_under_its_strategy_and_seed(codesign, refused):
    assert codesign(SEARCH)[0] == 0
    assert codesign("search runs/random-seed0/run.yaml --seed 2 --strategy random")[0] == 0
    assert load_trials("runs/random-seed0") != load_trials("runs/random-seed2")
    assert "give --resume" in refused(SEARCH)


def test_training_is_refused_to_several_processes(refused, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "it runs in one process, got 2" in refused("train runs/a")


def test_what_another_process_writes_is_left_alone(codesign, refused, tmp_path):
    from codesign.run_directory import Lock

    (tmp_path / "a").mkdir()
    lock = Lock(tmp_path / "a" / "run.lock")
    assert "writing here" in refused(f"{SEARCH} --out a")
    lock.release()


def test_limits_that_cannot_be_met_are_said_with_a_witness_before_anything_is_written(refused, tmp_path):
    error = refused(f"{SEARCH} --limit latency_s=1ns --out a")
    assert "cheapest found has" in error and "expansion=1" in error
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--limit power=3", "known are latency_s"),
        ("--limit energy_j=3kg", "the unit must be one of"),
        ("--strategy luck", "strategy must be one of mpnas"),
        ("--strategy-set luck=1", "known are"),
        ("--supernet-set luck=1", "known are"),
        ("--sampling often", "got 'often'"),
        ("--supernet nowhere", "there must be a supernet's weights"),
        ("--data nowhere", "must be one of digits"),
        ("--preset cifar --space-set stages=3", "stages"),
        ("--space bits", "a network and its weights must be given"),
        ("--hardware-choice rowz=8,16", "rowz"),
        ("missing.yaml", "must be readable"),
        ("--device tpu", "Device 'tpu': it must be one that torch has here, such as cpu or cuda, but"),
        ("--supernet nowhere", "there must be a supernet's weights, got none at"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(options, message, refused, tmp_path):
    assert message in refused(f"search --out a {options}")
    assert not (tmp_path / "a").exists()


def test_fewer_trials_than_there_are_are_refused(codesign, refused, tmp_path, caplog):
    run = tmp_path / "a"
    assert codesign(f"{SEARCH} --out a --resume")[0] == 0
    assert "a: there is no run to go on with yet; a new one begins." in caplog.text
    before = [(run / name).read_bytes() for name in ("run.yaml", "result.json")]
    assert "it holds 6 trials, so at least as many must be asked for, got --trials 2." in refused(
        "search --out a --resume --trials 2"
    )
    assert [(run / name).read_bytes() for name in ("run.yaml", "result.json")] == before
    assert codesign("search --out a --resume --trials 6")[0] == 0


def test_network_and_chip_are_chosen_together(codesign):
    code, out, _ = codesign(f"{SEARCH} --hardware-choice rows=8,16 --limit area_mm2=2 --out a --json")
    assert code == 0
    result = json.loads(out)
    assert result["options"]["chip.rows"] == 8
    assert result["limits"]["area_mm2"]["usage"] <= 1


@pytest.mark.parametrize("chip", ["int8-array", "stripes"])
def test_a_search_runs_on_arrays_of_other_kinds(codesign, chip):
    assert codesign(f"{MPNAS} --hardware {chip} --out a")[0] == 0
    run = load_run("a")
    assert run.spec.problem().price(run.trial("best").arch).energy_j <= run.limits["energy_j"]


@pytest.mark.slow
def test_a_search_that_is_killed_twice_goes_on_to_the_same_result(codesign, tmp_path):
    import torch

    line = f"{MPNAS} --supernet-set checkpoint_steps=1"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "killed"

    def killed_once(there, *more):
        """Kill it as soon as a file has something."""
        command = [sys.executable, "-m", "codesign.cli", *line.split(), "--out", "killed", *more]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
        while not (there.exists() and there.stat().st_size):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    killed_once(folder / "supernet" / "state.safetensors")
    killed_once(folder / "trials.jsonl", "--resume")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert codesign(f"{line} --out killed --resume")[0] == codesign(f"{line} --out whole")[0] == 0
    finally:
        torch.set_num_threads(threads)
    for name in ("result.json", "trials.jsonl", "supernet/weights.safetensors", "state.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [(row["phase"], row["step"]) for row in rows]
    assert len(steps) == len(set(steps))


def test_tensorboard_is_missed_before_anything_is_written(codesign, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, _, err = codesign(f"{SEARCH} --tensorboard --out a")
    assert code == 1 and "pip install tensorboard" in err
    assert not (tmp_path / "a").exists()


def test_training_that_diverges_is_said_with_its_network(codesign):
    code, _, err = codesign(f"{SEARCH} --supernet-set learning_rate=1e30 --out a")
    assert code == 1 and "Traceback" not in err
    assert "must be finite" in err.splitlines()[-1] and "blocks.0=" in err.splitlines()[-1]


FRONT = f"front --limit energy_j=0.5x:0.9x:2 --strategy random {SMALL}"


def test_a_front_that_is_stopped_goes_on_to_the_same_and_has_its_baselines(codesign, tmp_path, monkeypatch):
    from codesign import front_search

    assert codesign(f"{FRONT} --out whole")[0] == 0
    searches = []

    def stopping(*args):
        searches.append(args)
        if len(searches) == 3:
            raise KeyboardInterrupt
        return launched(*args)

    launched = front_search.search_with
    monkeypatch.setattr(front_search, "search_with", stopping)
    code, _, err = codesign(f"{FRONT} --out stopped")
    assert code == 1 and err.splitlines()[-1] == "codesign: interrupted: go on with --out stopped --resume"
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert "give --resume" in codesign(f"{FRONT} --out stopped")[2]
    code, out, err = codesign("front --out stopped --resume")
    assert code == 0, err
    assert max(map(len, out.splitlines())) <= 80
    whole, stopped = (json.loads((tmp_path / name / "front.json").read_text()) for name in ("whole", "stopped"))
    assert stopped["reference"] == whole["reference"]
    assert [row["arch"] for row in stopped["front"]] == [row["arch"] for row in whole["front"]]
    assert set(whole["groups"]) == {"random", "nsga2"}
    for name, group in whole["groups"].items():
        assert group["hypervolumes"] == stopped["groups"][name]["hypervolumes"]
        assert len(group["runs"]) == 2
    run = load_run(tmp_path / "whole" / "nsga2" / "energy_j=0.5x")
    assert len(run.trials) == 6 and run.spec.limits == ("energy_j=0.5x",)
    assert (tmp_path / "whole" / "front.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("energy_j=0.5x", "one limit must be a range"),
        ("energy_j=0.5x:0.9x", "must be metric=first:last:number"),
        ("energy_j=0.5x:0.9:3", "same unit"),
        ("energy_j=0.5x:0.9x:1", "at least two"),
        ("energy_j=0.5x:0.5x:3", "must differ"),
        ("energy_j=1e-4x:0.9x:3", "At the limits energy_j=0.0001x"),
    ],
)
def test_a_range_that_cannot_be_searched_is_refused_before_anything_is_written(limit, message, refused, tmp_path):
    assert message in refused(f"front --limit {limit} --out f {SMALL}")
    assert not (tmp_path / "f").exists()
