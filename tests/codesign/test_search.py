import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from toys import problem

from codesign.problem import UnreachableLimit
from codesign.run_directory import RunDirectoryError
from codesign.search import search
from codesign.strategies import Random, Reinforce
from codesign.trial import load_trials

STRATEGY = Reinforce(learning_rate=0.7)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    search(problem(), STRATEGY, 40, seed=3, out=out, batch_size=5)
    return {name: (out / name).read_bytes() for name in ("trials.jsonl", "state.safetensors", "config.json")}


def test_trials_are_numbered_and_logged_in_order(tmp_path):
    told = []
    trials = search(problem(), Random(), 12, out=tmp_path, batch_size=5, progress=told.append)
    assert [trial.number for trial in trials] == list(range(12))
    assert load_trials(tmp_path) == trials == told
    assert all(trial.feasible and trial.seed == 0 for trial in trials)


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_the_trials_do_not_depend_on_the_number_of_workers(pool, tmp_path, uninterrupted):
    with pool(3) as executor:
        search(problem(), STRATEGY, 40, seed=3, out=tmp_path, batch_size=5, executor=executor)
    assert (tmp_path / "trials.jsonl").read_bytes() == uninterrupted["trials.jsonl"]
    assert (tmp_path / "state.safetensors").read_bytes() == uninterrupted["state.safetensors"]


_LIVES = """
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[1])
from toys import problem
from codesign.search import search
from codesign.strategies import Reinforce

search(problem(), Reinforce(), 10)  # what is compiled and imported now is not in every life again

def life(out, dies_at, seconds):
    left = dies_at

    def deadly(name):
        real = getattr(os, name)

        def call(*args):
            nonlocal left
            left -= 1
            if left == 0:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])  # a torn line
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        return call

    for name in ("write", "fsync", "replace", "ftruncate"):
        setattr(os, name, deadly(name))
    search(problem(seconds=seconds), Reinforce(learning_rate=0.7), 40, seed=3, out=out, batch_size=5, resume=True)
    os._exit(0)

rng = random.Random(0)
for out, by_clock in ((sys.argv[2], False), (sys.argv[3], True)):
    lives, alive = 0, True
    while alive:
        lives += 1
        dies_at, after = (0, rng.uniform(0.02, 0.1)) if by_clock else (rng.randint(1, 30), 0)
        child = os.fork()
        if child == 0:
            life(out, dies_at, 0.002 if by_clock else 0.0)
        if by_clock:
            time.sleep(after * 1.1**lives)  # longer and longer, so that a slow machine comes to the end too
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or status == 0, status
        alive = os.WIFSIGNALED(status)
    print(lives)
"""


def test_a_search_killed_again_and_again_ends_as_the_uninterrupted_one_bit_for_bit(tmp_path, uninterrupted):
    """Killed in the middle of a write, between writes, and at any moment."""
    outs = [tmp_path / "at calls", tmp_path / "by the clock"]
    command = [sys.executable, "-c", _LIVES, str(Path(__file__).parent), *map(str, outs)]
    lives = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert int(lives[0]) > 8
    for out in outs:
        assert (out / "trials.jsonl").read_bytes() == uninterrupted["trials.jsonl"]
        assert (out / "state.safetensors").read_bytes() == uninterrupted["state.safetensors"]


@pytest.mark.parametrize("both", [False, True], ids=["the newest", "both"])
@pytest.mark.parametrize("state", [None, b"", "half", "older"])
def test_a_search_whose_state_is_lost_damaged_or_old_goes_on_from_the_one_before_or_its_trials(
    tmp_path, uninterrupted, state, both
):
    search(problem(), STRATEGY, 10, seed=3, out=tmp_path, batch_size=5)
    path = tmp_path / "state.safetensors"
    older = path.read_bytes()
    search(problem(), STRATEGY, 23, seed=3, out=tmp_path, batch_size=5, resume=True)
    for broken in (path, path.with_name("state.previous.safetensors")) if both else (path,):
        if state is None:
            broken.unlink()
        else:
            broken.write_bytes({b"": b"", "half": broken.read_bytes()[:100], "older": older}[state])
    search(problem(), STRATEGY, 40, seed=3, out=tmp_path, batch_size=5, resume=True)
    assert (tmp_path / "trials.jsonl").read_bytes() == uninterrupted["trials.jsonl"]
    assert path.read_bytes() == uninterrupted["state.safetensors"]


def test_a_log_that_lost_trials_which_the_state_knows_is_replayed(tmp_path, uninterrupted):
    search(problem(), STRATEGY, 30, seed=3, out=tmp_path, batch_size=5)
    log = tmp_path / "trials.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:12]))
    search(problem(), STRATEGY, 40, seed=3, out=tmp_path, batch_size=5, resume=True)
    assert log.read_bytes() == uninterrupted["trials.jsonl"]


def test_more_trials_later_are_the_trials_asked_for_at_once(tmp_path, uninterrupted):
    for n_trials in (7, 20, 40):
        trials = search(problem(), STRATEGY, n_trials, seed=3, out=tmp_path, batch_size=5, resume=True)
        assert len(trials) == n_trials
    assert (tmp_path / "trials.jsonl").read_bytes() == uninterrupted["trials.jsonl"]
    assert len(search(problem(), STRATEGY, 8, seed=3, out=tmp_path, batch_size=5, resume=True)) == 8


def test_a_finished_search_evaluates_nothing_again(tmp_path):
    toy = problem()
    first = search(replace(toy, accuracy=FailsAt(toy.accuracy, [], 10)), Random(), 10, out=tmp_path)
    told = []
    never = replace(toy, accuracy=FailsAt(toy.accuracy, [], 0))
    assert search(never, Random(), 10, out=tmp_path, resume=True, progress=told.append) == first == told


def test_another_configuration_in_the_directory_is_an_error_that_names_it(tmp_path):
    search(problem(), Random(), 3, seed=0, out=tmp_path)
    with pytest.raises(RunDirectoryError, match="seed: 0 there, 1 here"):
        search(problem(), Random(), 3, seed=1, out=tmp_path, resume=True)
    with pytest.raises(RunDirectoryError, match=r"problem.limits.energy_j"):
        search(problem(limit=0.6), Random(), 3, seed=0, out=tmp_path, resume=True)
    with pytest.raises(RunDirectoryError, match="already holds this run"):
        search(problem(), Random(), 3, seed=0, out=tmp_path)
    assert len(load_trials(tmp_path)) == 3


def test_a_limit_that_nothing_meets_stops_the_search_before_it_writes(tmp_path):
    with pytest.raises(UnreachableLimit, match="cheapest found has energy_j"):
        search(problem(limit=1e-6), Random(), 3, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class FailsAt:
    inner: object
    calls: list
    at: int

    def __call__(self, arch):
        self.calls.append(arch)
        if len(self.calls) > self.at:
            raise FloatingPointError("the accuracy failed")
        return self.inner(arch)

    def describe(self):
        return {}


def test_an_evaluation_that_fails_keeps_the_trials_before_it(tmp_path):
    toy = problem()
    fails = replace(toy, accuracy=FailsAt(toy.accuracy, [], 7))
    with pytest.raises(FloatingPointError):
        search(fails, Random(), 20, out=tmp_path, batch_size=5)
    assert len(load_trials(tmp_path)) == 7
    works = replace(toy, accuracy=FailsAt(toy.accuracy, [], 1000))
    trials = search(works, Random(), 20, out=tmp_path, batch_size=5, resume=True)
    assert len(works.accuracy.calls) == 13
    assert trials == search(problem(), Random(), 20, batch_size=5)


@pytest.mark.parametrize("pool", [None, ThreadPoolExecutor])
def test_no_candidate_is_paid_for_twice_by_the_lives_of_a_run(tmp_path, pool):
    toy, calls = problem(), []
    counting = replace(toy, accuracy=FailsAt(toy.accuracy, calls, 1000))
    executor = pool and pool(2)
    for n in (50, 100):
        trials = search(counting, Reinforce(learning_rate=4.0), n, 0, tmp_path, executor, resume=True)
    distinct = {trial.arch for trial in trials}
    assert len(distinct) < 70 and len(calls) == len(distinct)
    assert trials == search(toy, Reinforce(learning_rate=4.0), 100, 0)
    for trial in trials:
        assert toy.evaluate(trial.arch, trial.number) == trial


def test_the_configuration_on_disk_holds_the_whole_problem(uninterrupted):
    config = json.loads(uninterrupted["config.json"])
    assert config["strategy"]["learning_rate"] == 0.7 and config["seed"] == 3
    assert config["problem"]["space"]["network"]["layers"][1]["in_channels"] == 20
    assert config["problem"]["hardware"]["dram_pj_per_bit"] == 4.0


def test_bad_counts_are_refused():
    with pytest.raises(ValueError, match="n_trials=0"):
        search(problem(), Random(), 0)


class Full:
    """A disk that takes no more after a number of calls."""

    def __init__(self, real, calls):
        self.real, self.calls = real, calls

    def __call__(self, *args):
        self.calls -= 1
        if self.calls < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.real(*args)


@pytest.mark.parametrize("calls", range(4, 28))
def test_a_disk_that_is_full_at_any_moment_leaves_all_that_was_finished(tmp_path, monkeypatch, uninterrupted, calls):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Full(os.fsync, calls))
        told = []
        with pytest.raises(OSError, match=r"No space left on device.*safe"):
            search(problem(), STRATEGY, 40, seed=3, out=tmp_path, batch_size=5, progress=told.append)
    assert load_trials(tmp_path) == told
    assert not list(tmp_path.glob(".*.new"))
    search(problem(), STRATEGY, 40, seed=3, out=tmp_path, batch_size=5, resume=True)
    assert (tmp_path / "trials.jsonl").read_bytes() == uninterrupted["trials.jsonl"]
    assert (tmp_path / "state.safetensors").read_bytes() == uninterrupted["state.safetensors"]
