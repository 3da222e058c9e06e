"""Metrics as TensorBoard shows them."""

from __future__ import annotations

import os
from collections.abc import Mapping


class TensorBoard:
    """Writes the metrics of each epoch to a folder.

    Parameters
    ----------
    folder : path-like
        What was written there before is hidden: work that goes on reports its first epochs again.

    Raises
    ------
    ImportError
        Where the package ``tensorboard`` is not installed.

    Examples
    --------
    ``train(..., metrics=TensorBoard("runs/a/tensorboard"))``, then ``tensorboard --logdir runs``.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError(
                "TensorBoard: the package tensorboard must be installed: pip install tensorboard."
            ) from None
        self._writer = SummaryWriter(str(folder), purge_step=0)

    def __call__(self, metrics: Mapping[str, float]) -> None:
        """Write metrics, one of which is the ``epoch``."""
        for name, value in metrics.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, int(metrics["epoch"]))
        self._writer.flush()
