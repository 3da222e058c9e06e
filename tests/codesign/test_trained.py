"""From the trial of a search to a trained, tested and exported network."""

import csv
import dataclasses
import json
import math
import multiprocessing
import shutil

import numpy as np
import pytest
import torch

import codesign.data
import codesign.evaluation
import codesign.export
from codesign import Random, search
from codesign.accuracy import evaluate, scores_of
from codesign.cli import main
from codesign.evaluation import evaluate_trained
from codesign.export import export, load_export
from codesign.nets.mobilenetv2_supernet import Supernet
from codesign.quant import quantized_layers
from codesign.quant.integer import to_integers
from codesign.run import load_run
from codesign.run_directory import RunDirectoryError
from codesign.run_spec import RunSpec
from codesign.supernet import save_supernet
from codesign.train import PICTURES, Recipe
from codesign.trained import FinalTraining, load_trained, train_quantized, train_trial
from hwmodels.config import load_hardware
from hwmodels.cost import estimate
from hwmodels.from_torch import from_torch

TRAINING = FinalTraining(epochs=4, float_share=0.5, recipe=Recipe(batch_size=16))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run directory: trials that were scored by their bits, and a supernet that was calibrated and not trained."""
    folder = tmp_path_factory.mktemp("run")
    spec = RunSpec(n_train=256, n_search=100, n_test=100, strategy="random", trials=12, limits=("energy_j=0.9x",))
    data = spec.data()
    spec = spec.completed().fitted(data)

    def score(arch):
        return {"error": 1 / (1 + sum(block.weight_bits for block in spec.space().blocks(arch))), "loss": 1.0}

    spec.write(folder)
    search(spec.problem(score), Random(), 12, 0, folder)
    supernet = Supernet(spec.network_space(), spec.seed)
    supernet.calibrate(data.train.images[:128])
    (folder / "supernet").mkdir()
    save_supernet(supernet, folder / "supernet" / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def once_trained(made):
    return train_trial(load_run(made), "best", TRAINING)


@pytest.fixture
def run(made, once_trained, tmp_path):
    """A copy that a test may damage, its best trial trained."""
    shutil.copytree(made, tmp_path / "run")
    return load_run(tmp_path / "run")


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_trial_is_trained_at_its_bits_and_kept(run, once_trained):
    trained = load_trained(run)
    data = run.spec.data()
    assert same(trained.network, once_trained.network)
    space = run.spec.network_space()
    bits = {name: (layer.weight_bits, layer.input_bits) for name, layer in quantized_layers(trained.network)}
    assert bits == space.layer_bits(trained.trial.arch)
    assert from_torch(trained.network, (1, 1, 8, 8)).with_bits(
        *({name: pair[i] for name, pair in bits.items()} for i in (0, 1))
    ).layers == space.workload(trained.trial.arch).layers  # fmt: skip
    found = evaluate(trained.network, data.search)
    assert trained.record["metrics"] == {f"search_{name}": value for name, value in found.items()}
    assert found["error"] < 0.8  # chance is 0.9
    assert [entry["epoch"] for entry in trained.record["history"]] == list(range(4))
    assert sorted(path.name for path in trained.folder.iterdir()) == ["lock", "result.json", "weights.safetensors"]


def test_a_finished_training_is_read_back_and_another_refused(run, monkeypatch):
    monkeypatch.setattr("codesign.trained.train_quantized", None)  # it would fail
    again = train_trial(run, "best", TRAINING)
    assert again.record == load_trained(run).record
    with pytest.raises(RunDirectoryError, match=r"training.epochs: 4 there, 7 here.*--out"):
        train_trial(run, "best", dataclasses.replace(TRAINING, epochs=7))


def test_the_test_set_is_not_read_while_training(run, tmp_path):
    data = run.spec.data()
    hidden = dataclasses.replace(data, test=None)
    trained = train_trial(run, 0, dataclasses.replace(TRAINING, epochs=2), tmp_path / "out", hidden)
    assert (tmp_path / "out" / "weights.safetensors").exists() and trained.trial.number == 0


def test_from_the_supernet_training_begins_with_its_weights(run, tmp_path, monkeypatch):
    begun = []

    def look(network, bits, data, training, folder, metrics):
        begun.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return train_quantized(network, bits, data, training, folder, metrics)

    monkeypatch.setattr("codesign.trained.train_quantized", look)
    training = dataclasses.replace(TRAINING, start="supernet", epochs=2)
    assert training.float_epochs == 0
    trained = train_trial(run, "best", training, tmp_path / "out")
    supernet = Supernet(run.spec.network_space(), run.spec.seed)
    assert torch.equal(begun[0]["stem.weight"], supernet.stem.weight)
    assert not torch.equal(trained.network.stem.weight, supernet.stem.weight)
    (run.path / "supernet" / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="there must be a supernet's weights, got none"):
        train_trial(run, "best", training, tmp_path / "other")


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("epoch", [0, 2])
def test_stopped_after_any_epoch_of_either_part_training_goes_on_to_the_same_weights(
    run, once_trained, tmp_path, epoch
):
    def stop(metrics):
        if metrics["epoch"] == epoch:
            raise Killed

    with pytest.raises(Killed):
        train_trial(run, "best", TRAINING, tmp_path / "out", metrics=stop)
    assert not (tmp_path / "out" / "result.json").exists()
    seen = []
    trained = train_trial(run, "best", TRAINING, tmp_path / "out", metrics=lambda m: seen.append(m["epoch"]))
    assert same(trained.network, once_trained.network) and seen == list(range(4))
    assert trained.record["weights"] == once_trained.record["weights"]


def test_a_folder_is_written_by_one_training_at_a_time(run, tmp_path):
    def other(metrics):
        with pytest.raises(RunDirectoryError, match="is writing"):
            train_trial(run, "best", TRAINING, tmp_path / "out")
        raise Killed

    with pytest.raises(Killed):
        train_trial(run, "best", TRAINING, tmp_path / "out", metrics=other)


def test_pictures_and_digits_have_their_recipes():
    data = codesign.data.load_data("digits").train
    assert FinalTraining.for_images(data, epochs=3) == FinalTraining(epochs=3)
    colour = FinalTraining.for_images(codesign.data.Images(data.images.expand(-1, 3, -1, -1), data.labels), epochs=3)
    assert colour.recipe == PICTURES and colour.epochs == 3


def test_an_evaluation_runs_true_integers_and_simulates_in_full(run):
    trained, data = load_trained(run), run.spec.data()
    found = evaluate_trained(trained)
    assert found.fake_quantized == evaluate(trained.network, data.test)
    integer = scores_of(to_integers(trained.network), data.test)  # in int64
    assert found.integer["error"] == (integer.argmax(1) != data.test.labels).double().mean().item()
    assert abs(found.integer["error"] - found.fake_quantized["error"]) <= 0.02 and found.agreement >= 0.98
    arch, chip = trained.trial.arch, run.spec.hardware_model()
    metrics = estimate(run.spec.space().workload(arch), chip).metrics()
    assert found.metrics == metrics and found.usage == {"energy_j": metrics["energy_j"] / run.limits["energy_j"]}
    assert found.meets_limits and not found.kept and found.n_test == 100
    text = str(found)
    assert "test set: 100 images, read once" in text and "All limits are met." in text
    assert f"{100 * found.usage['energy_j']:.1f} %" in text


def test_a_limit_that_is_not_met_is_said(run):
    spec = dataclasses.replace(run.spec, limits=("energy_j=0.9x", "latency_s=1ns"))
    trained = dataclasses.replace(load_trained(run), run=dataclasses.replace(run, spec=spec))
    found = evaluate_trained(trained)
    assert not found.meets_limits and found.usage["latency_s"] > 1 and "! Not all limits are met." in str(found)


def test_the_test_set_is_read_once_for_a_network(run, monkeypatch):
    first = evaluate_trained(load_trained(run))
    monkeypatch.setattr("codesign.evaluation.scores_of", None)  # it would fail
    again = evaluate_trained(load_trained(run))
    assert again == dataclasses.replace(first, kept=True)
    assert "not read again" in str(again)


def test_other_data_than_the_network_was_trained_on_are_refused(run):
    other = dataclasses.replace(run, spec=dataclasses.replace(run.spec, n_train=128))
    with pytest.raises(ValueError, match="training images differ"):
        evaluate_trained(load_trained(other))
    square = codesign.data.Images(torch.zeros(4, 3, 9, 9), torch.arange(4))
    with pytest.raises(ValueError, match=r"images of shape \(1, 8, 8\) and 10 classes, got \(3, 9, 9\) and 4"):
        train_trial(run, 1, TRAINING, data=codesign.data.Data(square, square, square))


def test_what_is_not_trained_or_not_whole_is_said(run):
    other = next(t.number for t in run.trials if t.number != run.trial().number)
    with pytest.raises(ValueError, match=f"trial {other} must be trained.*codesign train .* --trial {other} first"):
        load_trained(run, other)
    folder = run.path / "trained" / str(run.trial().number)
    with pytest.raises(ValueError, match=f"must hold the network of trial {other}, but holds that"):
        load_trained(run, other, folder)
    weights = (folder / "weights.safetensors").read_bytes()
    for damaged in (weights[:-4], weights[:-1] + bytes([weights[-1] ^ 1]), b""):
        (folder / "weights.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match="weights must be whole"):
            load_trained(run)
    (folder / "result.json").write_text('{"arch"')
    with pytest.raises(ValueError, match="must be JSON, but it is damaged"):
        load_trained(run)


def test_an_export_holds_weights_architecture_bits_layers_and_chip(run, tmp_path):
    trained, data = load_trained(run), run.spec.data()
    evaluate_trained(trained)
    folder = export(trained, tmp_path / "net")
    assert sorted(path.name for path in folder.iterdir()) == [
        "chip.yaml", "evaluation.json", "layers.csv", "network.json", "weights.safetensors",
    ]  # fmt: skip
    network, record = load_export(folder)
    assert torch.equal(scores_of(network, data.search), scores_of(trained.network, data.search))
    assert record["arch"] == list(trained.trial.arch)
    assert {n: tuple(b.values()) for n, b in record["bits"].items()} == run.spec.space().layer_bits(trained.trial.arch)
    mean, std = (np.array(record["images"][name]) for name in ("mean", "std"))
    assert (mean, std) == (data.scaling.mean, data.scaling.std)
    chip = load_hardware(str(folder / "chip.yaml"))
    report = estimate(run.spec.space().workload(trained.trial.arch), chip)
    assert record["metrics"] == report.metrics()
    with open(folder / "layers.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [layer.name for layer in report.workload.layers]
    assert sum(int(row["macs"]) for row in rows) == report.workload.macs
    assert sum(float(row["energy_pj"]) for row in rows) * 1e-12 == pytest.approx(report.energy_j)


def test_an_export_is_repeated_and_another_network_is_replaced_by_force_alone(run, tmp_path):
    trained = load_trained(run)
    other = train_trial(run, 3, dataclasses.replace(TRAINING, epochs=1), tmp_path / "other")
    for _ in range(2):
        export(trained, tmp_path / "net")
    with pytest.raises(ValueError, match=r"holds another network.*--force"):
        export(other, tmp_path / "net")
    assert load_export(tmp_path / "net")[1]["arch"] == list(trained.trial.arch)
    export(other, tmp_path / "net", force=True)
    assert load_export(tmp_path / "net")[1]["arch"] == list(other.trial.arch)
    (tmp_path / "mine").mkdir()
    export(trained, tmp_path / "mine")  # an empty folder may be filled
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "network.json").write_text("{}")
    for force in (False, True):
        with pytest.raises(ValueError, match="something else, which is left alone"):
            export(trained, tmp_path / "thesis", force)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["network.json"]


def test_an_interrupted_export_leaves_what_was_there_and_can_be_repeated(run, tmp_path, monkeypatch):
    trained = load_trained(run)
    write = codesign.export.write_atomically
    for stop_at in ("weights.safetensors", "layers.csv"):

        def full(path, data, stop_at=stop_at):
            if path.name == stop_at:
                raise OSError(28, "No space left on device", str(path))
            write(path, data)

        monkeypatch.setattr(codesign.export, "write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            export(trained, tmp_path / "net")
        assert not (tmp_path / "net").exists()
    monkeypatch.setattr(codesign.export, "write_atomically", write)
    export(trained, tmp_path / "net")
    monkeypatch.setattr(codesign.export, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        export(trained, tmp_path / "net")
    load_export(tmp_path / "net")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def _export_and_die(trained, out, n):
    """Export in a process that ends, as if killed, at its n-th change of a file's name."""
    import os
    import pathlib

    count = 0

    def counted(change):
        def changed(*arguments, **keywords):
            nonlocal count
            count += 1
            if count > n:
                os.kill(os.getpid(), 9)
            return change(*arguments, **keywords)

        return changed

    os.replace, pathlib.Path.rename = counted(os.replace), counted(pathlib.Path.rename)
    export(trained, out)
    os._exit(0)


def test_killed_at_any_moment_an_export_is_whole_or_absent_under_its_name_and_can_be_repeated(run, tmp_path):
    trained, out = load_trained(run), tmp_path / "net"
    fork = multiprocessing.get_context("fork")
    for there in (False, True):
        for n in range(10):
            process = fork.Process(target=_export_and_die, args=(trained, out, n))
            process.start()
            process.join()
            if process.exitcode == 0:
                break
            if out.exists():
                load_export(out)
            if there:
                export(trained, out)
        assert process.exitcode == 0 and n >= 4
    export(trained, out)
    assert [path.name for path in tmp_path.iterdir() if "net" in path.name] == ["net"]


def test_the_commands_train_evaluate_and_export(made, tmp_path, capsys):
    shutil.copytree(made, tmp_path / "run", ignore=shutil.ignore_patterns("trained"))
    where = [str(tmp_path / "run"), "--trial", "best"]
    assert main(["train", *where, "--epochs", "3", "--batch-size", "32", "--precision", "bfloat16", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["training"]["epochs"] == 3 and record["training"]["recipe"]["precision"]["dtype"] == "bfloat16"
    assert main(["train", *where, "--epochs", "3", "--batch-size", "32", "--precision", "bfloat16"]) == 0
    assert "The test set was not read" in capsys.readouterr().out
    assert main(["evaluate", *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["meets_limits"] is True
    assert main(["evaluate", *where]) == 0
    assert "true integers" in capsys.readouterr().out
    for _ in range(2):
        assert main(["export", *where, "--out", str(tmp_path / "net")]) == 0
        assert "weights.safetensors" in capsys.readouterr().out
    load_export(tmp_path / "net")


def test_the_best_of_a_search_that_is_not_finished_is_said_to_be_so(run, caplog):
    words = ["evaluate", str(run.path), "--trial"]
    main([*words, "best"])
    assert not caplog.text
    lines = (run.path / "trials.jsonl").read_text().splitlines(keepends=True)
    (run.path / "trials.jsonl").write_text("".join(lines[:5]))
    main([*words, "0"])
    assert not caplog.text
    main([*words, "best"])
    assert caplog.text.count("the search has come to 5 of 12 trials; best is the best of those") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "RUN", "--device", "tpu"], "Device 'tpu': it must be one that torch has here"),
        (["train", "absent"], "must be a directory that holds run.yaml"),
        (["train", "RUN", "--trial", "99"], "must be best or a number from 0 to 11, got '99'"),
        (["train", "RUN", "--loss-scale", "8"], "--loss-scale: it is for --precision float16"),
        (["train", "RUN", "--precision", "float16", "--loss-scale", "3"], "power of two"),
        (["train", "RUN", "--learning-rate", "-1"], "learning rates must be positive"),
        (["train", "RUN", "--out", "FILE/x"], "it must be a folder"),
        (["evaluate", "RUN", "--trial", "2"], "trial 2 must be trained"),
        (["export", "RUN", "--trial", "2", "--out", "net"], "trial 2 must be trained"),
    ],
)
def test_bad_input_ends_with_one_line_and_code_2(made, tmp_path, capsys, words, message):
    (tmp_path / "file").write_text("")
    words = [w.replace("RUN", str(made)).replace("FILE", str(tmp_path / "file")) for w in words]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_training_that_does_not_stay_finite_ends_with_one_line_and_keeps_its_state(run, capsys):
    words = ["train", str(run.path), "--trial", "4", "--epochs", "4", "--learning-rate", "1e-3"]
    assert main([*words, "--quantized-rate", "1e30", "--optimizer", "sgd", "--batch-size", "32"]) == 1
    error = capsys.readouterr().err
    assert "must stay finite" in error and "in epoch 0, step" in error
    assert {path.name for path in (run.path / "trained" / "4").iterdir()} >= {"float.safetensors"}
    assert not math.isnan(load_trained(run).record["metrics"]["search_loss"])
