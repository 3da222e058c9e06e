"""States on the disk: the newest whole one, of the same work."""

import errno
import logging
import resource

import numpy as np
import pytest

from codesign.checkpoint import Checkpoint
from codesign.run_directory import RunDirectoryError


def state(epoch, n=3):
    return {"weights": np.full(n, float(epoch)), "epoch": epoch}


@pytest.fixture
def kept(tmp_path):
    return Checkpoint(tmp_path / "state.safetensors", {"seed": 0, "recipe": {"batch_size": 8}})


def test_the_newest_state_is_read_back(kept):
    assert kept.read() is None
    for epoch in range(3):
        kept.write(state(epoch))
        found = kept.read()
        assert found["epoch"] == epoch and (found["weights"] == epoch).all() and set(found) == {"epoch", "weights"}


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-7], lambda data: data[:-1] + b"\xff"])
def test_the_state_before_a_damaged_one_is_used_and_the_damage_is_said(kept, caplog, damage):
    for epoch in range(3):
        kept.write(state(epoch))
    kept.file.path.write_bytes(damage(kept.file.path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert kept.read()["epoch"] == 1
    assert "cannot be used" in caplog.text and str(kept.file.path) in caplog.text
    kept.write(state(7))
    assert kept.read()["epoch"] == 7


def test_a_kill_between_the_two_renames_costs_one_state(kept):
    for epoch in range(3):
        kept.write(state(epoch))
    kept.file.path.replace(kept.file.previous)  # what a kill there leaves
    assert kept.read()["epoch"] == 2


def test_where_no_state_is_whole_nothing_is_begun_anew(kept):
    kept.write(state(0))
    kept.file.path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"damaged\. Delete it to begin again"):
        kept.read()
    assert kept.file.path.read_bytes() == b"x"


def test_the_state_of_other_work_is_refused_and_the_difference_named(kept, tmp_path):
    kept.write(state(0))
    other = Checkpoint(kept.file.path, {"seed": 0, "recipe": {"batch_size": 16}})
    with pytest.raises(RunDirectoryError, match=r"recipe.batch_size: 8 there, 16 here"):
        other.read()
    assert kept.read()["epoch"] == 0


def test_a_full_disk_leaves_the_state_before_and_no_other_file(kept, tmp_path):
    kept.write(state(0))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))  # stands in for the full disk: writing fails half-way
    try:
        with pytest.raises(OSError, match="what was there before is safe") as error:
            kept.write(state(1, n=10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert error.value.errno == errno.EFBIG
    assert kept.read()["epoch"] == 0
    assert [path.name for path in tmp_path.iterdir()] == [kept.file.path.name]
