import json
import os
import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from codesign.run_directory import RunDirectory, RunDirectoryError, pack_state, unpack_state
from codesign.trial import Trial


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


def test_the_state_before_is_used_where_the_newest_is_damaged_and_none_where_both_are(tmp_path, caplog):
    with RunDirectory(tmp_path, {"seed": 0}) as run:
        for number in range(4):
            run.log.append(Trial((0,), {}, {}, number))
        assert run.restore() is None and not caplog.messages
        run.checkpoint({"x": np.arange(2.0)}, 1)
        assert run.restore()[1] == 1
        run.checkpoint({"x": np.arange(3.0)}, 2)
        run.checkpoint({"x": np.arange(4.0)}, 4)
        newest, before = tmp_path / "state.safetensors", tmp_path / "state.previous.safetensors"
        assert run.restore()[1] == 4 and len(run.restore()[0]["x"]) == 4
        data = bytearray(newest.read_bytes())
        data[-1] ^= 1
        newest.write_bytes(data)
        state, told = run.restore()
        assert told == 2 and (state["x"] == np.arange(3.0)).all()
        assert "cannot be used" in caplog.text and "checksum" in caplog.text
        run.checkpoint(state, 3)  # the damaged one becomes the one before
        assert run.restore()[1] == 3
        newest.write_bytes(b"")
        assert run.restore() is None and "replayed from its trials" in caplog.text
        before.unlink()
        assert run.restore() is None


def test_a_state_that_knows_more_trials_than_the_log_is_not_used(tmp_path):
    with RunDirectory(tmp_path, {"seed": 0}) as run:
        run.log.append(Trial((0,), {}, {}, 0))
        run.checkpoint({"step": 1}, 1)
        run.checkpoint({"step": 2}, 2)
        assert run.restore() == ({"step": 1}, 1)


def test_a_full_disk_keeps_the_states_that_there_are(tmp_path):
    """The system takes a part of the new state and then refuses, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with RunDirectory(tmp_path, {"seed": 0}) as run:
        run.log.append(Trial((0,), {}, {}, 0))
        run.checkpoint({"x": np.arange(2.0)}, 0)
        run.checkpoint({"x": np.arange(3.0)}, 1)
        names = ("state.safetensors", "state.previous.safetensors", "trials.jsonl")
        before = {name: (tmp_path / name).read_bytes() for name in names}
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(OSError, match=r"what was there before is safe.*state\.safetensors"):
                run.checkpoint({"x": np.arange(10_000.0)}, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert {name: (tmp_path / name).read_bytes() for name in names} == before
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "config.json", "lock"])


def test_a_checkpoint_killed_between_its_renames_leaves_the_state_before(tmp_path, monkeypatch):
    with RunDirectory(tmp_path, {"seed": 0}) as run:
        run.log.append(Trial((0,), {}, {}, 0))
        run.checkpoint({"step": 1}, 1)
        replace = os.replace

        def dies(source, target):
            if str(target).endswith("state.safetensors"):
                raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dies)
            with pytest.raises(KeyboardInterrupt):
                run.checkpoint({"step": 2}, 1)
        assert run.restore() == ({"step": 1}, 1)
