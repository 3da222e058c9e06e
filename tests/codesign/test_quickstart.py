"""The whole path, small: it resumes, it respects the limit, it keeps the test set for the end."""

import json
import signal
import subprocess
import sys
import threading

import pytest

from codesign import quickstart as module
from codesign.quickstart import Settings, quickstart
from codesign.run_directory import RunDirectoryError
from codesign.trial import load_trials

SMALL = Settings(n_trials=12, n_splits=2, float_epochs=1, quantized_epochs=1, tuning_epochs=1)
RESULTS = ("result.json", "test.json", "network.safetensors", "reinforce/trials.jsonl", "random/trials.jsonl")


traced_by = []  # the threads that traced a network


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out, trace = tmp_path_factory.mktemp("quickstart"), module.from_torch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "from_torch", lambda *args: traced_by.append(threading.current_thread()) or trace(*args))
        return quickstart(out, settings=SMALL, progress=False)


def read(out):
    return {name: (out / name).read_bytes().replace(str(out).encode(), b"OUT") for name in RESULTS}


def test_the_run_directory_holds_configuration_trials_and_plots(finished):
    config = json.loads((finished.out / "config.json").read_text())
    assert config["settings"]["n_trials"] == 12 and config["hardware"]["rows"] == 16
    assert "torch" in config["versions"]
    assert len(load_trials(finished.out / "reinforce")) == len(load_trials(finished.out / "random")) == 12
    for name in ("pareto.png", "layers.png", "bits.png"):
        assert (finished.out / name).read_bytes().startswith(b"\x89PNG")


def test_no_network_is_traced_beside_threads_that_train(finished):
    """Tracing switches torch's kernels for the whole process, and so the last bits of what trains meanwhile."""
    assert traced_by == [threading.main_thread()]


def test_every_candidate_meets_the_limit_and_the_chosen_one_has_the_least_search_loss(finished):
    trials = [t for run in ("reinforce", "random") for t in load_trials(finished.out / run)]
    assert all(t.feasible and t.metrics["energy_j"] <= finished.limit_j for t in trials)
    assert finished.chosen.search_loss == min(t.metrics["loss"] for t in trials)
    assert finished.chosen.energy_j <= finished.limit_j


def test_the_report_fits_80_columns_and_shows_every_layer_and_every_uniform_network(finished):
    text = str(finished)
    assert max(map(len, text.replace(str(finished.out), "runs/quickstart").splitlines())) <= 80
    for name in (*finished.chosen.bits, "uniform 8 bits", "uniform 4 bits", "uniform 2 bits", "random search"):
        assert name in text
    assert all(len(c.test_accuracies) == 2 and min(c.test_accuracies) >= 0 for c in finished.candidates)


def test_the_test_images_of_the_search_are_read_once_for_each_network_and_after_the_choice(tmp_path, monkeypatch):
    read_at = []
    evaluate, search = module.evaluate, module.search
    monkeypatch.setattr(module, "evaluate", lambda network, data: read_at.append("test") or evaluate(network, data))
    monkeypatch.setattr(module, "search", lambda *args, **kwargs: read_at.append("search") or search(*args, **kwargs))
    settings = Settings(n_trials=2, n_splits=1, float_epochs=1, quantized_epochs=1, tuning_epochs=1)
    result = quickstart(tmp_path, settings=settings, progress=False)
    assert read_at == ["search", "search"] + ["test"] * len(result.candidates)


def test_a_finished_run_is_read_back(finished, monkeypatch):
    monkeypatch.setattr(module, "train", None)
    monkeypatch.setattr(module, "evaluate", None)
    assert quickstart(finished.out, settings=SMALL, progress=False) == finished


def test_another_configuration_is_refused(finished):
    with pytest.raises(RunDirectoryError, match=r"settings\.seed: 0 there, 1 here"):
        quickstart(finished.out, seed=1, progress=False)


_CHILD = """
import os, signal, sys
from codesign.quickstart import Settings, quickstart
out, settings, workers, sign = sys.argv[1], eval(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
replace = os.replace

def replace_and_die(source, target):
    replace(source, target)
    if os.path.relpath(target, out) == sign:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = replace_and_die
quickstart(out, settings=settings, workers=workers)
"""


PHASES = ["config.json", "network.safetensors", "random/state.safetensors", "test.json"]


@pytest.mark.parametrize("signs", [PHASES[2:3], pytest.param(PHASES, marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_the_uninterrupted_one_whatever_the_phase_and_the_workers(finished, tmp_path, signs):
    command = [sys.executable, "-c", _CHILD, str(tmp_path), repr(SMALL)]
    for sign in signs:  # killed as soon as it has written this file
        killed = subprocess.run([*command, "2", sign], stderr=subprocess.DEVNULL, check=False)
        assert killed.returncode == -signal.SIGKILL and (tmp_path / sign).exists()
        assert not (tmp_path / "result.json").exists()
    subprocess.run([*command, "1", "none"], check=True, stderr=subprocess.DEVNULL)
    assert read(tmp_path) == read(finished.out)


@pytest.mark.parametrize("bad", [{"n_splits": 0}, {"n_splits": 6}, {"n_trials": 0}, {"seed": -1}])
def test_settings_out_of_range_are_refused(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name} must"):
        Settings(**bad)
