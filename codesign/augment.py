"""Augmentation: random changes of training images that leave their labels alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Augment = Callable[[Tensor, np.random.Generator], Tensor]


def crop_and_flip(images: Tensor, rng: np.random.Generator, most: int = 4) -> Tensor:
    """Each image moved by up to ``most`` pixels along each axis, zeros moved in, and half of them mirrored.

    References
    ----------
    He et al., "Deep residual learning", CVPR 2016, section 4.2, for CIFAR-10.
    """
    n, _, height, width = images.shape
    padded = functional.pad(images, (most, most, most, most))
    top, left = (torch.from_numpy(rng.integers(0, 2 * most + 1, size=n)) for _ in range(2))
    columns = left[:, None] + torch.arange(width)
    columns = torch.where(torch.from_numpy(rng.random(n) < 0.5)[:, None], columns.flip(1), columns)
    rows = top[:, None] + torch.arange(height)
    place = torch.arange(n)[:, None, None]
    moved = padded[place, :, rows[:, :, None], columns[:, None, :]]  # (n, height, width, channels)
    return moved.permute(0, 3, 1, 2)  # channels last in memory


def augmentation(images: Tensor) -> Augment:
    """`crop_and_flip` for images of three channels; for others, such as digits, a move by up to one pixel."""
    from codesign.train import shift

    return crop_and_flip if images.shape[1] == 3 else shift
