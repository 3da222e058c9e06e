"""One thread for each process of these tests: the networks are too small for two, and results are compared exactly."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
