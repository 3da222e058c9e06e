"""Image data, split for training, search and test."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codesign.data_sources import Source, from_arrays, open_source

#: Number of parts that the digits are cut into; each in turn is the test set.
N_FOLDS = 5


#: Share of the training images that is the search set, unless a number is given.
SEARCH_SHARE = 0.2


class Images(NamedTuple):
    """Images and their labels."""

    images: Tensor  #: float32, shape (n, channels, height, width)
    labels: Tensor  #: int64, shape (n,)

    def to(self, device: torch.device | str) -> Images:
        """The same on another device."""
        return Images(self.images.to(device), self.labels.to(device))


class Scaling(NamedTuple):
    """What was done to pixels: divided by ``largest``, then for each channel less ``mean``, over ``std``."""

    largest: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Normalization(NamedTuple):
    """What each channel of pixels from 0 to 1 has subtracted, and is then divided by."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Normalization:
        """That of a name in `NORMALIZATIONS`, or of means and deviations such as ``0.5,0.5,0.5/0.25,0.25,0.25``.

        Raises
        ------
        ValueError
            For a text of another form, or deviations that are not positive.
        """
        if text in NORMALIZATIONS:
            return NORMALIZATIONS[text]
        try:
            mean, std = (tuple(float(number) for number in part.split(",")) for part in text.split("/"))
            if len(mean) != len(std) or not all(math.isfinite(m) for m in mean) or not all(0 < s < 1e9 for s in std):
                raise ValueError
        except ValueError:
            raise ValueError(
                f"Normalization {text!r}: it must be {' or '.join(NORMALIZATIONS)}, or the mean of each channel, a "
                "slash and the standard deviation of each, such as 0.5,0.5,0.5/0.25,0.25,0.25."
            ) from None
        return cls(mean, std)

    def arrays(self, source: str, channels: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and deviation of each channel of images that have so many."""
        if len(self.mean) != channels:
            raise ValueError(
                f"Data {source!r}: the normalization must have a number for each of the {channels} channels, got "
                f"{len(self.mean)}" + ("; name the data of the network, --data." if source == "digits" else ".")
            )
        return np.array(self.mean), np.array(self.std)


#: By name: what torchvision's weights expect.
NORMALIZATIONS = {"imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


@dataclass(frozen=True, eq=False)
class Data:
    """Three disjoint sets, in which order they are iterated over.

    Parameters
    ----------
    train, search, test : Images
        To train weights on, to make choices on, and to read once at the end.
    scaling : Scaling, optional
        How pixels became these images; None: they are as they were given.
    """

    train: Images
    search: Images
    test: Images
    scaling: Scaling | None = None

    def __iter__(self) -> Iterator[Images]:
        return iter((self.train, self.search, self.test))

    @property
    def classes(self) -> int:
        """Labels of the training and of the search set are below it."""
        return int(max(part.labels.max() for part in (self.train, self.search))) + 1

    def to(self, device: torch.device | str) -> Data:
        """The same on another device."""
        return Data(*(part.to(device) for part in self), self.scaling)

    def describe(self) -> dict[str, Any]:
        """Sizes and digests of the three sets."""
        from codesign.describe import digest

        return {
            name: {"n": len(part.labels), "digest": digest(part.images.cpu(), part.labels.cpu())}
            for name, part in zip(("train", "search", "test"), self, strict=True)
        }


def load_data(
    source: str,
    data_dir: str | os.PathLike[str] | None = None,
    n_train: int | None = None,
    n_search: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
    download: bool = False,
    search_from: Literal["train", "test"] = "train",
    normalize: Normalization | None = None,
    every_class: bool = True,
) -> Data:
    """Images of a data set, normalised, in three disjoint parts.

    Parameters
    ----------
    source : str
        "digits", a name that torchvision knows (`codesign.data_sources.TORCHVISION`), an ``.npz`` file with
        ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or a folder with ``train/CLASS/`` and ``test/CLASS/`` or
        ``val/CLASS/``.
    data_dir : path-like, optional
        For a name the folder that holds torchvision's files or ``NAME.npz``; for a file or a folder what its path
        starts from.
    n_train, n_search, n_test : int, optional
        Images of each part, all classes in their shares. By default a fifth of the training images is the search
        set, all others are the training set, and all test images are the test set.
    seed : int
        Of the choice. With fewer images a part holds a subset of what it holds with more.
    download : bool
        Let torchvision get what is missing.
    search_from : {"train", "test"}
        Which images the search set is taken from. A network that was trained on all training images hardly loses on
        them, so its choices are better made on a fifth of the test images, the rest being the test set.
    normalize : Normalization, optional
        Mean and standard deviation of each channel, of pixels from 0 to 1, as the weights of a network expect them.
        None: those of the training part.
    every_class : bool
        Whether each class must have a training image, and no label be without. False, where images only calibrate and
        choose, and the network knows which classes there are: labels are any numbers from 0.

    Raises
    ------
    ValueError, FileNotFoundError
        For a source that is not known or not there, files that are not whole, arrays of a wrong shape or type,
        labels out of range, or fewer images than are asked for.

    Notes
    -----
    Pixels of 8 bits are divided by 255; then each channel has its mean over the training part subtracted and is
    divided by its standard deviation there. No file of a user's is unpickled; torchvision's own pickles are compared
    with the sums of the published files first (`codesign.data_sources.open_torchvision`).

    The first images of each part are a stratified sample of it.
    """
    for name, n in {"n_train": n_train, "n_search": n_search, "n_test": n_test}.items():
        if n is not None and n < 1:
            raise ValueError(f"Data {source!r}: {name} must be at least 1, got {name}={n}.")
    folder = None if data_dir is None else Path(data_dir).expanduser()
    whole, held_out, classes = _digits(seed) if source == "digits" else open_source(source, folder, download)
    _check_labels(source, whole.labels, held_out.labels, classes, every_class)
    rng = np.random.default_rng(seed)
    if search_from not in ("train", "test"):
        raise ValueError(f"Data {source!r}: search_from must be train or test, got {search_from!r}.")
    searched = whole if search_from == "train" else held_out
    n_search = n_search or max(1, round(SEARCH_SHARE * len(searched.labels)))
    orders = [_stratified(part.labels, rng) for part in (whole, held_out)]
    if searched is whole:
        search, train = _taken(source, "training", orders[0], n_search, n_train)
        (test,) = _taken(source, "test", orders[1], n_test)
    else:
        (train,) = _taken(source, "training", orders[0], n_train)
        search, test = _taken(source, "test", orders[1], n_search, n_test)
    absent = np.setdiff1d(whole.labels, whole.labels[train])
    if len(absent) and every_class:
        raise ValueError(f"Data {source!r}: each class must have a training image, got none of class {absent[0]} in "
                         f"{len(train)}; raise n_train.")  # fmt: skip
    parts = ((whole, train), (searched, search), (held_out, test))
    pixels = [_float_pixels(source, part, index) for part, index in parts]
    if len({array.shape[1:] for array in pixels}) > 1:
        raise ValueError(f"Data {source!r}: training and test images must have one shape, got {pixels[0].shape[1:]} "
                         f"and {pixels[2].shape[1:]} (channels, height, width).")  # fmt: skip
    mean, std = _moments(pixels[0]) if normalize is None else normalize.arrays(source, pixels[0].shape[1])
    scaling = Scaling(255.0 if _are_bytes(whole) else 1.0, tuple(map(float, mean)), tuple(map(float, std)))
    shift, scale = (array.astype(np.float32)[:, None, None] for array in (mean, std))
    for array in pixels:
        array -= shift
        array /= scale
    images = (Images(torch.from_numpy(array), torch.from_numpy(part.labels[index]))
              for array, (part, index) in zip(pixels, parts, strict=True))  # fmt: skip
    return Data(*images, scaling)


def _check_labels(
    source: str, train: NDArray[np.int64], test: NDArray[np.int64], classes: int | None, every_class: bool
) -> None:
    """Labels must be 0, 1, ... without a gap, and the same in both sets; or from 0, unless ``every_class``."""
    for part, labels in (("training", train), ("test", test)):
        if not len(labels):
            raise ValueError(f"Data {source!r}: there must be {part} images, got none.")
    known = classes or int((train if every_class else np.concatenate([train, test])).max()) + 1
    for part, labels in (("training", train), ("test", test)):
        if labels.min() < 0 or labels.max() >= known:
            odd = labels[(labels < 0) | (labels >= known)]
            raise ValueError(f"Data {source!r}: labels of the {part} images must be from 0 to {known - 1}, got "
                             f"{odd[0]} and {len(odd) - 1} more.")  # fmt: skip
    counts = np.bincount(train, minlength=known) if known <= len(train) else np.zeros(1)
    if every_class and not counts.all():
        raise ValueError(f"Data {source!r}: each class from 0 to {known - 1} must have a training image, got none of "
                         f"class {np.argmin(counts > 0)}; number the classes without a gap.")  # fmt: skip


def _stratified(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices in an order of which every stretch has each class in its share, to within about one image."""
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    mine = labels[by_class]
    quantile = (np.arange(len(labels)) - starts[mine] + rng.random(len(labels))) / counts[mine]
    return by_class[np.argsort(quantile, kind="stable")]


def _taken(source: str, what: str, order: NDArray[np.int64], *sizes: int | None) -> list[NDArray[np.int64]]:
    """Consecutive stretches of an order; of the last one None is all that is left."""
    *first, last = sizes
    asked = sum(n or 0 for n in first) + (last or 1)
    if asked > len(order):
        raise ValueError(f"Data {source!r}: there must be as many {what} images as are asked for, got {asked} of "
                         f"{len(order)}; ask for fewer.")  # fmt: skip
    taken = []
    for n in (*first, last or len(order)):
        taken.append(order[:n])
        order = order[n or 0 :]
    return taken


def _are_bytes(part: Source) -> bool:
    return part.pixels(np.array([0])).dtype == np.uint8


def _float_pixels(source: str, part: Source, index: NDArray[np.int64]) -> NDArray[np.float32]:
    """Pixels as float32, those of 8 bits from 0 to 1."""
    raw = part.pixels(index)
    pixels = np.ascontiguousarray(raw, dtype=np.float32)
    if raw.dtype == np.uint8:
        pixels /= 255
    elif not np.isfinite(pixels).all():
        raise ValueError(f"Data {source!r}: pixels must be finite, got nan or inf in {(~np.isfinite(pixels)).sum()}.")
    return pixels if pixels is not raw else pixels.copy()


def _moments(pixels: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel; 1 in place of a deviation of 0."""
    sums = np.zeros((2, pixels.shape[1]))
    for i in range(0, len(pixels), 1000):  # a few at a time: in double precision all would take much memory
        part = pixels[i : i + 1000].astype(np.float64)
        sums += part.sum((0, 2, 3)), np.square(part).sum((0, 2, 3))
    mean, square = sums / (pixels.size / pixels.shape[1])
    variance = square - mean**2
    return mean, np.sqrt(np.where(variance > 1e-12 * square, variance, 1))


def _digits(seed: int) -> tuple[Source, Source, int]:
    """The digits of `digits`, its search set among the training images."""
    train, search, test = digits(seed)
    pool = Images(torch.cat([train.images, search.images]), torch.cat([train.labels, search.labels]))
    sources = (from_arrays("digits", part.images.numpy(), part.labels.numpy()) for part in (pool, test))
    return *sources, 10


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
