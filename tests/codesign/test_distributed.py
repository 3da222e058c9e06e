"""Two processes that exchange tensors by gloo, against one with the whole batch.

They are started once, do everything, and leave what they found in files, which the tests read.
"""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SPACE, few, trained
from torch import multiprocessing, nn

from codesign import distributed, processes
from codesign.data import Data, Images
from codesign.nets.mobilenetv2_supernet import Supernet
from codesign.problem import Problem
from codesign.run_directory import RunDirectoryError
from codesign.search import search
from codesign.strategies import MPNAS, Random
from codesign.supernet import SupernetAccuracy, SupernetTask, train_supernet
from codesign.trial import load_trials
from codesign.weight_training import Stopped, SupernetTraining, WeightTrainer
from hwmodels import BitFusion

TRAINING = SupernetTraining(float_epochs=1, epochs=1, batch_size=32, sampling="sandwich", checkpoint_steps=1)


def in_double(data):
    return Data(*(Images(part.images.double(), part.labels) for part in data))


# --- what each process does, and one alone --------------------------------------------------------------------------


def normalised(channels=5, seed=0):
    """Value, gradients and running statistics of BatchNorm by the moments of the batch, of which each has its rows."""
    generator = torch.Generator().manual_seed(seed)
    x, slope = torch.randn(2, 8, channels, 3, 3, generator=generator, dtype=torch.float64)
    x = distributed.share(x * 2 + 100).requires_grad_()
    kept = nn.BatchNorm2d(channels).double()
    with torch.no_grad():
        kept.weight.uniform_(0.5, 2, generator=generator)
        kept.bias.normal_(generator=generator)
    y = distributed.batch_moments(x, kept.weight, kept.bias, kept, 0.3, 1e-5)
    y.backward(distributed.share(slope))
    return {
        "y": y.detach(), "x": x.grad, "weight": kept.weight.grad, "bias": kept.bias.grad,
        "mean": kept.running_mean, "variance": kept.running_var,
    }  # fmt: skip


def shared_weights(out=None):
    """Shared weights after some epochs, in double precision so that rounding does not grow."""
    network, losses = Supernet(SPACE).double(), []
    train_supernet(network, in_double(few(64, 32)), TRAINING, out=out, resume=True,
                   progress=lambda _, loss: losses.append(loss))  # fmt: skip
    return {**network.state_dict(), "losses": torch.tensor(losses)}


def task(accuracy=None):
    network, data = trained().double(), in_double(few(64, 32))
    accuracy = accuracy or SupernetAccuracy(network, data.train.images[:64], data.search)
    free = Problem(SPACE, accuracy, BitFusion())
    limits = {name: share * free.price(SPACE.reference).metrics()[name] for name, share in
              (("energy_j", 0.4), ("edp_js", 0.3))}  # fmt: skip
    return replace(free, limits=limits, supernet=SupernetTask(network, data, SupernetTraining(batch_size=16)))


def steps(strategy):
    """Weights and policy after some steps of both."""
    problem = task()
    training = strategy.start(problem, strategy.init(problem, np.random.default_rng(0)))
    means = training.advance()
    return {
        **training.network.state_dict(),
        "logits": torch.from_numpy(training.logits),
        "loss": torch.tensor(means["loss"]),
    }


STRATEGIES = {task: MPNAS(steps=2, steps_per_offer=2, task=task) for task in ("gumbel", "reinforce")}
SEARCHES = {"mpnas": MPNAS(steps=4, steps_per_offer=1), "random": Random()}


def searched(name, folder, n_trials, resume=False, **changes):
    trials = search(replace(task(), **changes), SEARCHES[name], n_trials, 1, folder, batch_size=2, resume=resume)
    return [(trial.arch, trial.metrics) for trial in trials]


def raised(work):
    """The name and the text of what a piece of work raises."""
    try:
        work()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def not_a_number():
    """One image of which the second process alone has its share."""
    data = few(64, 32).train
    trainer = WeightTrainer(trained(), data, SupernetTraining(batch_size=64), 10, 0)
    rows = trainer._order[1] if trainer.batch() and trainer._order[1].numel() else []
    data.images[rows[-1]] = float("nan")
    trainer.step([SPACE.largest])


def fails(arch):
    raise ArithmeticError("the accuracy failed")


def in_two(rank, folder, port):
    """Everything, in one of two processes."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}  # fmt: skip
    trained()  # by itself
    with processes.started("cpu"), processes.folder(folder) as mine:
        seen = []
        found = {
            "who": (processes.rank(), processes.world_size(), processes.is_first(), mine == folder),
            "told": processes.on_first(lambda: seen.append(1) or ("from", processes.rank())), "seen": len(seen),
            "error": raised(lambda: processes.on_first(lambda: 1 / 0)),
            "uneven": raised(lambda: distributed.share(torch.zeros(3))),
            "normalised": normalised(), "shared_weights": shared_weights(mine / "supernet"),
            "read back": shared_weights(mine / "supernet"),
        }  # fmt: skip
        with processes.alone():
            found["alone"] = processes.world_size(), normalised()
        found |= {f"steps {name}": steps(strategy) for name, strategy in STRATEGIES.items()}
        for name in SEARCHES:
            found[f"search {name}"] = searched(name, mine / name, 4)
            searched(name, mine / f"{name} in parts", 3)
            found[f"parts {name}"] = searched(name, mine / f"{name} in parts", 4, resume=True)
        found["not a number"] = raised(not_a_number)
        found["not resumed"] = raised(lambda: searched("random", mine / "random", 6))
        found["failed"] = raised(lambda: searched("random", mine / "failed", 6, accuracy=fails))
        torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(in_two, (folder, port), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def assert_close(found, expected, rtol, atol):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor.to(found[name].dtype), rtol=rtol, atol=atol, equal_nan=True), name


# --- tests -----------------------------------------------------------------------------------------------------------


def test_each_process_knows_who_it_is_and_the_first_one_works_for_all(two):
    assert [found["who"] for found in two] == [(0, 2, True, True), (1, 2, False, False)]
    assert [found["told"] for found in two] == [("from", 0)] * 2
    assert [found["seen"] for found in two] == [1, 0]
    assert [found["error"] for found in two] == [("ZeroDivisionError", "division by zero")] * 2
    assert all("must split evenly" in found["uneven"][1] for found in two)


def test_one_process_is_the_first_and_the_only_one():
    assert (processes.rank(), processes.world_size(), processes.is_first()) == (0, 1, True)
    assert processes.on_first(lambda: 3) == 3
    with processes.started():
        assert processes.world_size() == 1
    x = torch.zeros(3)
    assert distributed.share(x) is x


def test_batchnorm_over_two_processes_is_that_of_the_whole_batch(two):
    expected = normalised()
    for name in ("y", "x"):  # rows
        assert torch.allclose(torch.cat([found["normalised"][name] for found in two]), expected[name], atol=1e-9), name
    for name in ("weight", "bias"):  # parts of a sum
        assert torch.allclose(sum(found["normalised"][name] for found in two), expected[name], atol=1e-9), name
    for name in ("mean", "variance"):
        assert all(torch.allclose(found["normalised"][name], expected[name], rtol=1e-12) for found in two), name


def test_batchnorm_in_float_of_values_far_from_zero_loses_no_digits(two):
    """E[x^2] - mu^2 would: both are about 10,000, and their difference 4."""
    reference = nn.functional.batch_norm(
        (torch.randn(2, 8, 5, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[0] * 2 + 100),
        None, None, training=True,
    )  # fmt: skip
    assert torch.allclose(reference.var(dim=(0, 2, 3), correction=0), torch.ones(5, dtype=torch.float64), atol=1e-4)
    assert all(float(found["normalised"]["variance"].min()) > 0 for found in two)


def test_what_a_process_does_alone_waits_for_none_and_has_its_own_moments(two):
    expected = normalised()
    for found in two:
        size, alone = found["alone"]
        assert size == 1 and all(torch.equal(alone[name], expected[name]) for name in expected)


def test_shared_weights_are_the_same_in_both_and_those_of_one_process(two):
    expected = shared_weights()
    first, second = (found["shared_weights"] for found in two)
    assert len(expected["losses"]) == 4 and second.pop("losses").numel() == 0  # the first one reports
    assert_close(first, expected, rtol=1e-8, atol=1e-10)
    del first["losses"]
    assert_close(second, first, rtol=0, atol=0)


@pytest.mark.parametrize("name", list(STRATEGIES))
def test_the_policy_is_the_same_in_both_and_that_of_one_process(two, name):
    expected = steps(STRATEGIES[name])
    first, second = (found[f"steps {name}"] for found in two)
    assert torch.equal(first["logits"], second["logits"])
    assert_close(second, first, rtol=0, atol=0)
    assert_close(first, expected, rtol=1e-8, atol=1e-10)
    start = MPNAS().start(task(), MPNAS().init(task(), np.random.default_rng(0))).logits
    assert float((first["logits"] - torch.from_numpy(start)).nan_to_num().abs().max()) > 0.05


@pytest.mark.parametrize("name", list(SEARCHES))
def test_a_search_in_two_processes_gives_all_the_same_trials_and_one_writes_them(two, name, folder):
    first, second = (found[f"search {name}"] for found in two)
    assert first == second == [(trial.arch, trial.metrics) for trial in load_trials(folder / name)]
    expected = searched(name, None, 4)
    assert [arch for arch, _ in first] == [arch for arch, _ in expected]
    for (_, metrics), (_, alone) in zip(first, expected, strict=True):
        assert metrics == pytest.approx(alone, rel=1e-8)


@pytest.mark.parametrize("name", list(SEARCHES))
def test_a_search_gone_on_with_in_two_processes_ends_as_the_one_that_was_not_interrupted(two, name, folder):
    assert all(found[f"parts {name}"] == found[f"search {name}"] for found in two)
    for file in ("trials.jsonl", "state.safetensors"):
        assert (folder / name / file).read_bytes() == (folder / f"{name} in parts" / file).read_bytes()


def test_finished_shared_weights_are_read_by_the_first_and_given_to_the_other(two, folder):
    assert (folder / "supernet" / "weights.safetensors").exists()
    assert two[0]["read back"].pop("losses").isnan().tolist() == [True]  # nothing was trained
    for found in two:
        found["read back"].pop("losses", None)
        assert_close(found["read back"], two[0]["read back"], rtol=0, atol=0)
        assert torch.equal(found["read back"]["stem.weight"], two[0]["shared_weights"]["stem.weight"])


def test_what_goes_wrong_in_one_stops_both(two):
    for found in two:
        assert found["not a number"][0] == Stopped.__name__ and "must be finite, but is nan" in found["not a number"][1]
        assert (
            found["not resumed"][0] == RunDirectoryError.__name__
            and "already holds this run" in found["not resumed"][1]
        )
        assert found["failed"] == ("ArithmeticError", "the accuracy failed")


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="a GPU of its own, got 1 and process 1"), processes.started():
        pass


@pytest.mark.slow
def test_torchrun_searches_from_the_command_line(tmp_path):
    options = (  # noqa: SIM905
        "search --limit energy_j=0.5x --n-train 128 --n-search 64 --trials 4 --batch-size 2 --supernet-epochs 1 "
        "--strategy-set steps=4 --strategy-set steps_per_offer=2 --supernet-set batch_size=32 --device cpu --json --out"
    ).split()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for name, through in (("one", []), ("two", launcher)):
        out = subprocess.run(
            [sys.executable, *through, "-m", "codesign.cli", *options, str(tmp_path / name)], check=True,
            capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert out.stdout.count('"metrics"') == 1
    one, two = (load_trials(tmp_path / name) for name in ("one", "two"))
    assert len(two) == len(one) == 4 and all(trial.feasible for trial in two)
    assert {path.name for path in (tmp_path / "one").iterdir()} == {path.name for path in (tmp_path / "two").iterdir()}
    assert Path(tmp_path / "two" / "supernet" / "weights.safetensors").exists()
