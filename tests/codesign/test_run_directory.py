import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from codesign.run_directory import RunDirectory, RunDirectoryError, pack_state, unpack_state


def test_a_state_read_back_is_the_state_written_its_generator_too():
    rng = np.random.default_rng(3)
    state = {"logits": rng.normal(size=(3, 2)), "n": 2**100, "none": None, "rng": rng.bit_generator.state}
    back = unpack_state(pack_state(state))
    assert (back.pop("logits") == state.pop("logits")).all() and back == state


def test_a_damaged_state_is_noticed_at_every_byte():
    data = pack_state({"x": np.arange(3.0), "step": 7})
    for i in range(len(data)):
        damaged = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        try:
            state = unpack_state(damaged)
        except ValueError:
            continue
        assert (state["x"] == np.arange(3.0)).all() and state["step"] == 7  # the byte was padding
    with pytest.raises(ValueError):
        unpack_state(data[: len(data) // 2])


def test_another_configuration_is_refused_and_the_difference_named(tmp_path):
    with RunDirectory(tmp_path, {"seed": 0, "strategy": {"learning_rate": 0.1}}):
        pass
    with pytest.raises(RunDirectoryError, match=r"strategy.learning_rate: 0.1 there, 0.2 here"):
        RunDirectory(tmp_path, {"seed": 0, "strategy": {"learning_rate": 0.2}}, resume=True)
    with pytest.raises(RunDirectoryError, match="already holds this run"):
        RunDirectory(tmp_path, {"seed": 0, "strategy": {"learning_rate": 0.1}})
    with RunDirectory(tmp_path, {"seed": 0, "strategy": {"learning_rate": 0.1}}, resume=True):
        pass


def test_the_configuration_is_json_with_versions(tmp_path):
    with RunDirectory(tmp_path, {"seed": 0}):
        pass
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["seed"] == 0 and config["versions"]["numpy"] == np.__version__


def test_a_directory_is_written_by_one_search_at_a_time(tmp_path):
    with RunDirectory(tmp_path, {"seed": 0}):
        with pytest.raises(RunDirectoryError, match="another search of this process"):
            RunDirectory(tmp_path, {"seed": 0}, resume=True)
        there = subprocess.run([sys.executable, "-c", _OPEN, tmp_path], capture_output=True, text=True, check=False)
        assert f"process {os.getpid()} on" in there.stderr and there.returncode
    there = subprocess.run([sys.executable, "-c", _OPEN, tmp_path], capture_output=True, text=True, check=False)
    assert there.returncode == 0, there.stderr


_OPEN = textwrap.dedent("""
    import sys
    from codesign.run_directory import RunDirectory
    RunDirectory(sys.argv[1], {"seed": 0}, resume=True)
""")

_ORPHAN = textwrap.dedent("""
    import os, signal, sys, time
    from codesign.run_directory import RunDirectory
    run = RunDirectory(sys.argv[1], {"seed": 0}, resume=True)
    child = os.fork()
    if child == 0:
        os.close(1), os.close(2)
        time.sleep(20)
        os._exit(0)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""")


def test_a_killed_search_leaves_no_lock_even_where_its_workers_live_on(tmp_path):
    killed = subprocess.run([sys.executable, "-c", _ORPHAN, tmp_path], stdout=subprocess.PIPE, text=True, check=False)
    worker = int(killed.stdout)
    try:
        os.kill(worker, 0)
        with RunDirectory(tmp_path, {"seed": 0}, resume=True):
            pass
    finally:
        os.kill(worker, 9)


def test_a_directory_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        RunDirectory(tmp_path / "file" / "run", {})
