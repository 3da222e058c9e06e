"""Settings of doctests, those of the README included."""

import pytest


@pytest.fixture(autouse=True)
def _doctests_in_an_empty_folder(request: pytest.FixtureRequest, tmp_path, monkeypatch) -> None:
    """Examples may write files."""
    if type(request.node).__name__ == "DoctestItem":
        monkeypatch.chdir(tmp_path)
