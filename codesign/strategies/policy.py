"""Policies over archs: an independent categorical distribution for each field of each choice.

Logits have shape (n_fields, n_values), one row for each field (`AbstractSpace.field_counts`), -inf for values that a
field does not have.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codesign.space import AbstractSpace

Floats = NDArray[np.float64]


def even_logits(space: AbstractSpace) -> Floats:
    """The policy that draws every arch with the same probability."""
    counts = space.field_counts
    logits = np.full((len(counts), max(counts)), -np.inf)
    for row, count in zip(logits, counts, strict=True):
        row[:count] = 0.0
    return logits


def probabilities(logits: Floats) -> Floats:
    """Softmax along the options; an option that a field does not have is a logit of -inf.

    Parameters
    ----------
    logits : ndarray, shape (n_fields, n_values)
    """
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def draw(logits: Floats, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Archs drawn from the policy, as indices of field values; shape (n, n_fields)."""
    edges = probabilities(logits).cumsum(axis=1)
    uniform = rng.random((n, len(logits), 1)) * edges[:, -1:]
    return (uniform >= edges).sum(axis=2)


def policy_gradient(logits: Floats, archs: NDArray[np.int64], advantages: Floats) -> Floats:
    """Mean over archs of advantage times the gradient of the log-probability, which is onehot - p.

    Parameters
    ----------
    logits : ndarray, shape (n_fields, n_values)
    archs : ndarray of int, shape (n, n_fields)
    advantages : ndarray, shape (n,)

    Returns
    -------
    ndarray, shape (n_fields, n_values)
    """
    onehot = archs[:, :, None] == np.arange(logits.shape[1])
    return np.einsum("n,nco->co", advantages, onehot - probabilities(logits)) / len(archs)


def entropy_gradient(logits: Floats) -> Floats:
    """Gradient of the summed entropy of the fields, in nats: -p (log p + H)."""
    p = probabilities(logits)
    log_p = np.log(np.where(p > 0, p, 1.0))
    entropy = -(p * log_p).sum(axis=1, keepdims=True)
    return -p * (log_p + entropy)
