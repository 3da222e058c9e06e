"""Image data: the handwritten digits that come with scikit-learn, split for training, search and test."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Number of parts that the digits are cut into; each in turn is the test set.
N_FOLDS = 5


class Images(NamedTuple):
    """Images and their labels."""

    images: Tensor  #: float32, shape (n, channels, height, width), from 0 to 1
    labels: Tensor  #: int64, shape (n,)


class Data(NamedTuple):
    """Three disjoint sets: to train weights on, to make choices on, and to read once at the end."""

    train: Images
    search: Images
    test: Images

    def describe(self) -> dict[str, Any]:
        """Sizes and digests of the three sets."""
        from codesign.describe import digest

        return {
            name: {"n": len(part.labels), "digest": digest(part.images, part.labels)}
            for name, part in zip(self._fields, self, strict=True)
        }


def digits(seed: int = 0, fold: int = 0) -> Data:
    """The 1797 digits of 8 x 8 pixels, shuffled and cut into five parts of 359 or 360.

    Parameters
    ----------
    seed : int
        Of the shuffle.
    fold : int
        0 to 4: the part that is the test set; the next one is the search set, the other three are the training set.
        The test sets of the five folds are disjoint.

    Raises
    ------
    ValueError
        For a fold that is not there.

    References
    ----------
    ``sklearn.datasets.load_digits``: the test set of Alpaydin and Kaynak, "Optical recognition of handwritten
    digits", UCI Machine Learning Repository, 1998.
    """
    if not 0 <= fold < N_FOLDS:
        raise ValueError(f"digits: fold must be from 0 to {N_FOLDS - 1}, got fold={fold}.")
    images, labels = _all_digits()
    parts = np.array_split(np.random.default_rng(seed).permutation(len(labels)), N_FOLDS)
    parts = parts[fold:] + parts[:fold]
    return Data(*(Images(images[index], labels[index]) for index in (np.concatenate(parts[2:]), parts[1], parts[0])))


@cache
def _all_digits() -> Images:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32) / 16).unsqueeze(1)
    return Images(images, torch.from_numpy(bunch.target.astype(np.int64)))
