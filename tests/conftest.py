"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """The folder of reference data, named by CODESIGN_REFERENCE_DIR; tests that want it skip where it is unset."""
    folder = os.environ.get("CODESIGN_REFERENCE_DIR")
    if not folder:
        pytest.skip("CODESIGN_REFERENCE_DIR is not set: no reference data to compare with")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"CODESIGN_REFERENCE_DIR must be a folder, got {folder}")
    return path
