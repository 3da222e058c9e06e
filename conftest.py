"""Settings of all tests, doctests included."""

import os

import pytest

# One thread for each process: the networks of the tests are too small for two, and results are compared exactly.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _doctests_in_an_empty_folder(request: pytest.FixtureRequest, tmp_path, monkeypatch) -> None:
    """Examples may write files."""
    if type(request.node).__name__ == "DoctestItem":
        monkeypatch.chdir(tmp_path)
