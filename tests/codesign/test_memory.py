import subprocess
import sys

import pytest

from codesign.memory import keep_freed_memory

#: Writes 64 MiB again and again, and prints how many pages the system had to give for them.
PROGRAM = """
import resource, numpy as np
from codesign.memory import keep_freed_memory
{wish}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**23)
before = faults()
for _ in range(8):
    np.ones(2**23)
print(faults() - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the allocator of this system takes no such wish")
def test_memory_that_was_freed_is_written_again_without_faults():
    given_back, kept = (
        int(subprocess.run([sys.executable, "-c", PROGRAM.format(wish=wish)], check=True, capture_output=True).stdout)
        for wish in ("", "assert keep_freed_memory()")
    )
    assert kept < given_back / 10


def test_a_system_without_mallopt_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
