"""A trained network's bits from the command line: search, train, evaluate, export; and what is refused."""

import json
import math
import pickle
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_task import _trained, write_files
from toys import problem

from codesign.cli import main
from codesign.export import load_export
from codesign.family_bits import reach_table
from codesign.metrics import quantity
from codesign.run import load_run
from codesign.run_spec import RunSpec
from codesign.strategies import HAQ
from codesign.trained import FinalTraining
from codesign.tuned_accuracy import TUNING_RATE

NETWORK = """
from torch import nn

class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv2d(1, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 2)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.up(self.conv(x)).mean(dim=(2, 3)))

class WithHelpers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.mix, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 4), nn.Linear(4, 10)
        self.aux = nn.Sequential(nn.Linear(4, 10))

    def forward(self, x):
        x = self.conv(x).mean(dim=(2, 3))
        if self.training:
            self.aux(x)
        return self.fc(nn.functional.linear(x, self.mix.weight))

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.again, self.fc = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.again(self.again(self.conv(x))).mean(dim=(2, 3)))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a network's code, its weights and its data, as a user has them."""
    (tmp_path / "my_small_nets.py").write_text(NETWORK)
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_small_nets", None)


BASE = "search small_task:net --weights w.safetensors --data d.npz --normalize 0/1 --bits 2,4,8 --trials 4 "
BASE += "--batch-size 2 --n-search 64 --network-set calibration=64 --score loss "


def codesign(command):
    return main(command.split())


@pytest.fixture
def refused(place, capsys):
    def run(command):
        assert codesign(command) != 0
        return capsys.readouterr().err

    return run


def test_a_search_gives_files_that_train_evaluate_and_export_take(place, capsys):
    assert codesign(BASE + "--limit energy_j=50% --limit weight_bytes=0.8x --pin first=8 --out a") == 0
    said = capsys.readouterr()
    assert "of the way up" in said.err and "error" in said.err and "in float" in said.err
    assert "Kendall tau" in said.out and "weight bits" in said.out
    run = load_run(place / "a")
    assert run.spec.strategy == "milp" and {"run.yaml", "result.json", "bits.png", "front.png"} <= {
        path.name for path in (place / "a").iterdir()
    }
    best = run.trial()
    assert run.spec.space().layer_bits(best.arch)["0"] == (8, 8)
    problem = run.spec.problem()
    assert all(problem.feasible(trial.arch) for trial in run.trials)
    assert codesign("train a --epochs 2") == 0
    assert codesign("evaluate a --json") == 0
    capsys.readouterr()
    assert codesign("evaluate a --json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["meets_limits"] and found["agreement"] > 0.98 and found["integer"]["error"] < 0.5
    assert codesign("export a --out net") == 0
    network, record = load_export(place / "net")
    assert record["family"] == "bits" and record["network"] == "small_task:net"
    bits = {name: (layer.weight_bits, layer.input_bits) for name, layer in network.named_modules()
            if hasattr(layer, "weight_bits")}  # fmt: skip
    assert bits == run.spec.space().layer_bits(best.arch)


def test_training_begins_with_the_weights_of_the_file_unless_told_otherwise(place, monkeypatch):
    assert codesign(BASE + "--strategy random --out a") == 0
    from codesign import trained

    begun = []

    def look(network, *args):
        begun.append(network.state_dict()["0.weight"].clone())
        raise KeyboardInterrupt

    monkeypatch.setattr(trained, "train_quantized", look)
    for start in ("", " --from weights", " --from scratch"):
        with pytest.raises(KeyboardInterrupt):
            trained_command(f"train a --epochs 1{start} --out t{len(begun)}")
    weights = _trained(512, 30)[0].state_dict()["0.weight"]
    assert [torch.equal(one, weights) for one in begun] == [True, True, False]


def trained_command(command):
    from codesign.commands import train
    from codesign.run import load_run
    from codesign.trained import train_trial

    words = command.split()
    start = words[words.index("--from") + 1] if "--from" in words else "weights"
    assert train._STARTS[start]
    train_trial(load_run("a"), "best", FinalTraining(epochs=1, start=start), words[words.index("--out") + 1])


def test_a_run_is_repeated_from_its_file_and_goes_on(place, capsys):
    assert codesign(BASE + "--strategy random --limit energy_j=0.6x --out a") == 0
    assert codesign("search a/run.yaml --out b") == 0
    first, second = load_run(place / "a"), load_run(place / "b")
    assert [(t.arch, t.metrics) for t in first.trials] == [(t.arch, t.metrics) for t in second.trials]
    assert codesign("search --resume --trials 6 --out a") == 0
    assert [t.arch for t in load_run(place / "a").trials[:4]] == [t.arch for t in first.trials]


def test_weight_bits_alone_and_layers_in_float(place, capsys):
    assert codesign(BASE + "--input-bits 8 --strategy greedy --limit weight_bytes=0.5x --out a") == 0
    run = load_run(place / "a")
    assert {a for _, a in run.spec.space().layer_bits(run.trial().arch).values()} == {8}
    save_file({name: tensor.clone() for name, tensor in mixed().state_dict().items()}, place / "m.safetensors")
    command = (
        BASE.replace("small_task:net", "my_small_nets:Mixed").replace("w.safe", "m.safe")
        + "--float-layers auto --strategy random "
    )
    assert codesign(command + "--out m") == 0
    run = load_run(place / "m")
    assert run.spec.space().layer_bits(run.trial().arch)["up"] == (8, 8)
    gradients = command.replace("random", "dnas") + "--strategy-set steps=4 --limit energy_j=0.9x "
    assert codesign(gradients + "--supernet-set batch_size=32 --out g") == 0


def mixed(name="Mixed"):
    from importlib import import_module

    sys.path.insert(0, "")
    try:
        return getattr(import_module("my_small_nets"), name)()
    finally:
        sys.path.remove("")


def test_heads_that_run_in_training_alone_and_weights_that_others_read_stay_in_float(place, capsys):
    tensors = {name: tensor.clone() for name, tensor in mixed("WithHelpers").state_dict().items()}
    save_file(tensors, place / "h.safetensors")
    command = BASE.replace("small_task:net", "my_small_nets:WithHelpers").replace("w.safe", "h.safe")
    assert codesign(command + "--strategy random --out h") == 2
    assert "runs once, as a module, to be quantized, but mix is not; leave" in capsys.readouterr().err
    assert codesign(command + "--float-layers auto --strategy random --out h") == 0
    run = load_run(place / "h")
    assert list(run.spec.space().layer_bits(run.trial().arch)) == ["conv", "mix", "fc"]
    assert run.spec.space().searched == ("conv", "fc")


@pytest.mark.parametrize(("bits", "widest"), [((2, 4, 8), 8), ((2, 4), 4), ((4, 8, 16), 8)])
@pytest.mark.parametrize(("name", "end"), [("energy_j", "low"), ("frames_per_s", "high")])
def test_both_ends_of_the_range_of_a_limit_are_said(bits, widest, name, end):
    free = replace(toy := problem(limit=None), space=replace(toy.space, bits=bits))
    cheapest = getattr(free.reachable(name), end)
    whole = free.price(free.space.uniform(widest)).metrics()[name]
    limit = cheapest + 0.6 * (whole - cheapest)
    header, _, row = reach_table([free, replace(free, limits={name: limit})]).splitlines()
    assert header.split("  ")[-1] == "of the way up" and f"at {widest} bits" in header and f"of {widest} bits" in header
    assert [cell.strip() for cell in re.split("  +", row)][1:] == [
        *(quantity(name, value) for value in (cheapest, whole, limit)), f"{limit / whole:.3f}x", "60.0 %",
    ]  # fmt: skip
    assert reach_table([free]) == ""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--limit energy_j=0.01x", "must meet every limit"),
        ("--limit energy_j=-5%", "must be a positive number"),
        ("--pin nowhere=8", "pinned must name MAC layers of 'net', got nowhere"),
        ("--pin first", "it must be layer=bits"),
        ("--pin first=64", "bits must be from 1 to"),
        ("--network-set calibration=2", "calibration must have at least 8 images, got 2"),
        ("--network-set calibration=5000", "there must be 5000 training images to calibrate on, got 512"),
        ("--network-set weight_quantizer=best", "best"),
        ("--float-layers nowhere", "float_layers must be MAC layers of it, got nowhere"),
        ("--weights none.safetensors", "must be readable"),
        ("--normalize 0,0/1,1", "a number for each of the 1 channels, got 2"),
        ("--strategy-set preset=odd", "its presets are: none; got 'odd'"),
        ("--strategy mpnas", "supernet"),
        ("--limit edp_js=0.5x", "limits must be on sums over layers (latency_s, energy_j, macs"),
        ("--strategy cursor --strategy-set cost=edp_js", "cost must be a sum over the cost table"),
        ("--strategy dnas --bits 4", "there must be two bitwidths to mix, got bits=(4,)"),
        ("--pin 0=8 --pin 0=4", "a layer must be pinned once, but 0 is already"),
        ("--pin first=8 --pin 0=4", "a layer must be pinned once, but first and 0 are one"),
        ("--network-set statistics=all", "statistics must be one of match, renew, keep, got 'all'"),
        ("--weights p0.pth", "this is a pickle"),
        ("--weights nan.safetensors", "they must be finite numbers, but those of 0.weight are not"),
        ("--weights parallel.safetensors", "Names that begin with module. are those of a DataParallel"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_leaves_nothing(place, refused, command, message):
    weights = _trained(512, 30)[0].state_dict()
    save_file({f"module.{name}": tensor.clone() for name, tensor in weights.items()}, place / "parallel.safetensors")
    broken = {**weights, "0.weight": torch.full_like(weights["0.weight"], math.nan)}
    save_file({name: tensor.clone() for name, tensor in broken.items()}, place / "nan.safetensors")
    (place / "p0.pth").write_bytes(pickle.dumps({"0.weight": 1}, protocol=0))
    before = sorted(place.iterdir())
    said = refused(BASE + command + " --out x")
    assert message in said and said.strip().splitlines()[-1].startswith("codesign: error:")
    assert said.count("Network: ") <= 1
    assert sorted(place.iterdir()) == before


def test_bad_input_in_a_directory_that_is_there_takes_nothing_else_of_it(place, refused):
    (place / "x").mkdir()
    (place / "x" / "notes.txt").write_text("mine")
    refused(BASE + "--weights none.safetensors --out x")
    assert {path.name for path in (place / "x").iterdir()} >= {"notes.txt"}
    (place / "x" / "notes.txt").unlink()
    for path in (place / "x").iterdir():
        path.unlink()
    refused(BASE + "--weights none.safetensors --out x")
    assert list((place / "x").iterdir()) == []
    assert codesign(BASE + "--strategy random --out x") == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("search --weights w.safetensors --out x", "the network must be named too"),
        ("search resnet20 --weights w.safetensors --out x", "the data that resnet20 is for must be named"),
        ("shootout --resume --out nowhere", "holds none; name a network to begin one"),
        ("shootout small_task:net --weights w.safetensors --data d.npz --minutes nan --out x", "at least 0, got nan"),
    ],
)
def test_what_is_not_named_is_asked_for(place, refused, command, message):
    assert message in refused(command)


def test_a_result_is_tested_and_exported_without_training(place, capsys):
    assert codesign(BASE + "--strategy greedy --limit energy_j=0.6x --out a") == 0
    capsys.readouterr()
    assert codesign("evaluate a --json") == 0
    found = json.loads(capsys.readouterr().out)
    run = load_run(place / "a")
    assert found["epochs"] == 0 and found["meets_limits"] and found["agreement"] == 1
    assert found["search"]["loss"] == pytest.approx(run.trial().metrics["loss"], rel=1e-4)
    assert codesign("evaluate a") == 0 and "the given weights, quantized" in capsys.readouterr().out
    assert codesign("export a --out net") == 0
    network, _ = load_export(place / "net")
    weights = _trained(512, 30)[0].state_dict()
    assert torch.equal(network.state_dict()["0.weight"], weights["0.weight"])
    assert codesign("train a --epochs 2") == 0  # what was not trained is not in its way
    said = capsys.readouterr().out
    assert "as the search scored it" in said
    assert codesign("evaluate a --json") == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == 2
    assert codesign("train a --epochs 0 --from scratch --out s") == 2
    assert "epochs must be at least 1 from scratch, got 0" in capsys.readouterr().err


def test_a_network_is_tuned_at_a_rate_that_keeps_what_it_knows():
    _, data = _trained(512, 30)
    assert FinalTraining.for_images(data.train, start="weights").quantized_rate == TUNING_RATE
    assert FinalTraining.for_images(data.train, start="weights").recipe.statistics == "kept"
    assert FinalTraining.for_images(data.train, start="weights", quantized_rate=0.3).quantized_rate == 0.3
    assert FinalTraining.for_images(data.train).quantized_rate > TUNING_RATE


def test_data_that_show_some_of_the_classes_will_do_to_choose_bits(place):
    arrays = dict(np.load("d.npz"))
    for part in ("train", "test"):
        some = np.isin(arrays[f"y_{part}"], (1, 4, 9) if part == "train" else (0, 4, 9))
        arrays |= {f"{name}_{part}": arrays[f"{name}_{part}"][some] for name in "xy"}
    np.savez("some.npz", **arrays)
    command = BASE.replace("d.npz", "some.npz").replace("--n-search 64", "--n-search 20")
    assert codesign(command + "--strategy random --out a") == 0


def test_a_layer_that_runs_twice_is_named_and_with_auto_left_in_float(place, capsys):
    save_file({name: tensor.clone() for name, tensor in mixed("Twice").state_dict().items()}, place / "t.safetensors")
    command = BASE.replace("small_task:net", "my_small_nets:Twice").replace("w.safe", "t.safe") + "--strategy random "
    assert codesign(command + "--out t") == 2
    assert "that runs once, as a module, to be quantized, but again, again@2 are not" in capsys.readouterr().err
    assert codesign(command + "--float-layers auto --out t") == 0
    assert load_run(place / "t").spec.space().searched == ("conv", "fc")


def test_without_a_limit_it_is_said_which_trial_a_course_ended_with(place, caplog):
    steps = "--strategy-set steps=4 --supernet-set batch_size=32 "
    assert codesign(BASE + f"--strategy cursor {steps} --trials 4 --batch-size 2 --out a") == 0
    assert "is trial 2: give --trial 2" in caplog.text


def test_schedules_last_over_the_trials_unless_set():
    spec = RunSpec(family="bits", network="n", weights="w", strategy="haq", trials=60)
    assert spec.completed().strategy_settings["warmup"] == HAQ().lasting(60).warmup == 12
    kept = replace(spec, strategy_settings={"warmup": 7}).completed()
    assert kept.strategy_settings["warmup"] == 7
    assert kept.strategy_settings["noise_decay"] == HAQ(warmup=7).lasting(60).noise_decay


def test_a_layer_that_cannot_be_quantized_is_named(place, capsys):
    save_file({name: tensor.clone() for name, tensor in mixed().state_dict().items()}, place / "m.safetensors")
    assert codesign(BASE.replace("small_task:net", "my_small_nets:Mixed").replace("w.safe", "m.safe") + "--out m") != 0
    said = capsys.readouterr().err
    assert "but up is not; leave such layers in float with --float-layers auto" in said


def test_more_classes_than_outputs_are_refused(place, capsys):
    arrays = dict(np.load("d.npz"))
    arrays["y_train"][:2] = 10
    np.savez("d.npz", **arrays)
    assert codesign(BASE + "--out x") != 0
    assert "labels must be among the 10 outputs of small_task:net, got 11" in capsys.readouterr().err
