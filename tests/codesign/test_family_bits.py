"""A trained network's bits from the command line: search, train, evaluate, export; and what is refused."""

import json
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
    from codesign.trained import FinalTraining, train_trial

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
    assert "runs as a module to be quantized, but mix is not; leave" in capsys.readouterr().err
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
        ("--limit edp_js=0.5x", "limits must be on sums"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(refused, command, message):
    said = refused(BASE + command + " --out x")
    assert message in said and said.strip().splitlines()[-1].startswith("codesign: error:")


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
