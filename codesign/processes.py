"""Several processes that train together: who this one is, and what the first one tells the others."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def _group() -> Any:
    """``torch.distributed`` where it is at work; nobody who did not load torch is part of a group."""
    torch = sys.modules.get("torch")
    group = getattr(torch, "distributed", None)
    return group if group is not None and group.is_available() and group.is_initialized() else None


def world_size() -> int:
    """Number of processes that train together; 1 where none were started, and for work that one does alone."""
    group = _group()
    return 1 if group is None or _alone.get() else int(group.get_world_size())


def rank() -> int:
    """Number of this process, from 0."""
    group = _group()
    return 0 if group is None else int(group.get_rank())


def is_first() -> bool:
    """Whether this is the process that writes, prints, and evaluates candidates."""
    return rank() == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """What this thread computes within waits for no other process, and is not averaged with theirs."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def on_first(work: Callable[[], T]) -> T:
    """What ``work`` gives in the first process, in all of them; what it raises is raised in all of them too."""
    if world_size() == 1:
        return work()
    told: list[Any] = [None, None]
    if is_first():
        try:
            told[0] = work()
        except Exception as error:
            told[1] = error
    _group().broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return told[0]  # type: ignore[no-any-return]


@contextlib.contextmanager
def started(device: str | None = None) -> Iterator[None]:
    """Join the processes that ``torchrun`` started, if it started this one, until the end of the block.

    Parameters
    ----------
    device : str, optional
        "cpu", or where the processes train; by default each has a GPU of its own where there are GPUs.

    Raises
    ------
    ValueError
        For more processes than GPUs.

    Notes
    -----
    Tensors on the CPU are exchanged by gloo, those on GPUs by NCCL. Each process computes its share of every batch,
    so the result is that of one process, but for rounding.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) == 1 or _group() is not None:
        yield
        return
    import torch

    backend = "gloo"
    if torch.cuda.is_available() and (device is None or torch.device(device).type == "cuda"):
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise ValueError(
                f"torchrun: each process must have a GPU of its own, got {count} and process {local} on this machine. "
                "Start fewer with --nproc_per_node, or train on the CPU."
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def require_one(whose: str) -> None:
    """Refuse to run in several processes.

    Raises
    ------
    ValueError
        Where ``torchrun`` started more than one.
    """
    n = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if n > 1:
        raise ValueError(f"{whose}: it runs in one process, got {n} by torchrun; start it without.")


@contextlib.contextmanager
def folder(out: str | os.PathLike[str]) -> Iterator[Path]:
    """Where this process may write: ``out`` for the first one, a folder that is deleted in the end for the others."""
    if is_first():
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)
