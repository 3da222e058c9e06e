"""Metrics as TensorBoard shows them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


class TensorBoard:
    """Writes metrics to a folder, step by step.

    Parameters
    ----------
    folder : path-like
        Made with the first metrics. What was written there before for their step and for later ones is hidden, so
        that work which goes on is shown once.

    Raises
    ------
    ImportError
        Where the package ``tensorboard`` is not installed.

    Notes
    -----
    ``train(..., metrics=TensorBoard("runs/a/tensorboard"))``, then ``tensorboard --logdir runs``.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError(
                "TensorBoard: the package tensorboard must be installed: pip install tensorboard."
            ) from None
        self._folder, self._make = str(folder), SummaryWriter
        self._writer: Any = None

    def __call__(self, metrics: Mapping[str, float]) -> None:
        """Write metrics, one of which is the ``epoch``, their place on the axis."""
        step = int(metrics["epoch"])
        self._writer = self._writer or self._make(self._folder, purge_step=step)
        for name, value in metrics.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, step)
        self._writer.flush()
