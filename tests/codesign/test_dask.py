"""A cluster as the executor of a search: a real one, which loses a worker."""

import os
import signal

import pytest
from toys import problem

from codesign.search import search
from codesign.strategies import Reinforce

distributed = pytest.importorskip("distributed", reason="dask[distributed] is not installed")


def test_a_cluster_that_loses_a_worker_gives_the_trials_of_one_thread(tmp_path):
    strategy, settings = Reinforce(learning_rate=0.7), {"n_trials": 40, "seed": 3, "batch_size": 5}
    search(problem(), strategy, **settings, out=tmp_path / "alone")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None, memory_limit=0
    )
    killed = []
    with cluster, distributed.Client(cluster) as client:
        workers = {name: nanny.pid for name, nanny in cluster.workers.items()}

        def kill(trial):
            if trial.number == 12:  # the third of its batch: two others are waiting or at work
                killed.append(workers[0])
                os.kill(workers[0], signal.SIGKILL)

        found = search(
            problem(seconds=0.02), strategy, **settings, out=tmp_path / "cluster", executor=client.get_executor(),
            progress=kill,
        )  # fmt: skip
        ran = set(client.run(os.getpid).values())
    assert len(found) == 40 and len(set(workers.values())) == 2
    assert killed and killed[0] not in ran
    for name in ("trials.jsonl", "state.safetensors"):
        assert (tmp_path / "cluster" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
