"""Images and labels where they lie: an ``.npz`` file, torchvision's files, a folder of pictures."""

from __future__ import annotations

import difflib
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Source(NamedTuple):
    """Labelled images that are read when they are asked for."""

    labels: NDArray[np.int64]  #: shape (n,)
    pixels: Callable[[NDArray[np.int64]], NDArray[Any]]  #: indices -> uint8 or float, shape (n, C, H, W)


class Known(NamedTuple):
    """A data set that torchvision reads."""

    cls: str  #: its class in `torchvision.datasets`
    classes: int
    splits: tuple[dict[str, Any], dict[str, Any]] = ({"train": True}, {"train": False})


#: What torchvision reads, by the names that `codesign.data.load_data` knows.
TORCHVISION = {
    "cifar10": Known("CIFAR10", 10),
    "cifar100": Known("CIFAR100", 100),
    "mnist": Known("MNIST", 10),
    "fashion-mnist": Known("FashionMNIST", 10),
    "kmnist": Known("KMNIST", 10),
    "svhn": Known("SVHN", 10, ({"split": "train"}, {"split": "test"})),
}
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
#: Sizes of an axis that can be the channels of an image.
CHANNELS = (1, 2, 3, 4)


def open_source(source: str, data_dir: Path | None, download: bool) -> tuple[Source, Source, int | None]:
    """The training images, the test images, and the number of classes where the name tells it.

    Raises
    ------
    ValueError, FileNotFoundError
        For a name that is not known, and for data that are not there, not whole, or not images with labels.
    """
    name = source.lower().replace("_", "-")
    if name in TORCHVISION:
        if data_dir is None:
            raise ValueError(f"Data {source!r}: the folder that holds it must be given; give data_dir.")
        if not data_dir.is_dir() and not download:
            raise FileNotFoundError(
                f"Data {source!r}: data_dir must be a folder, got {str(data_dir)!r}; give that of the images."
            )
        packed = data_dir / f"{name}.npz"
        parts = open_npz(packed) if packed.exists() else open_torchvision(name, data_dir, download)
        return *parts, TORCHVISION[name].classes
    path = (data_dir or Path()) / source
    if path.is_dir():
        return *open_folder(path), None
    if path.suffix == ".npz":
        return *open_npz(path), None
    names = ("digits", *TORCHVISION)
    near = difflib.get_close_matches(name, names, n=2)
    raise ValueError(
        f"Data {source!r}: it must be one of {', '.join(names)}, an .npz file, or a folder with train/ and test/ or "
        f"val/{f'; near it is {near[0]}' if near else f'; there is no {str(path)!r}'}."
    )


def open_npz(path: Path) -> tuple[Source, Source]:
    """Training and test images of a file with ``x_train``, ``y_train``, ``x_test`` and ``y_test``."""
    if not path.exists():
        raise FileNotFoundError(f"Data {str(path)!r}: there is no such file.")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ARRAYS if name not in file]
            if missing:
                raise ValueError(f"it must hold {', '.join(ARRAYS)}, but {', '.join(missing)} missing: it has "
                                 f"{', '.join(file.files) or 'nothing'}")  # fmt: skip
            arrays = {name: file[name] for name in ARRAYS}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, AttributeError, TypeError) as error:
        raise ValueError(
            f"Data {str(path)!r}: it must be a whole .npz file, but it is damaged or cut short ({error}); make or "
            "copy it again."
        ) from None
    except ValueError as error:
        said = "its arrays must be numbers, but some are Python objects" if "allow_pickle" in str(error) else error
        raise ValueError(f"Data {str(path)!r}: {said}.") from None
    whose = f"Data {str(path)!r}"
    return tuple(  # type: ignore[return-value]
        from_arrays(f"{whose}: x_{part}", arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")
    )


def from_arrays(whose: str, images: NDArray[Any], labels: NDArray[Any]) -> Source:
    """Images (n, H, W), (n, H, W, C) or (n, C, H, W), uint8 or float, and one integer label for each."""
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"{whose} must be uint8 or float, got {images.dtype}.")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    elif images.ndim != 4 or images.shape[1] not in CHANNELS:
        raise ValueError(f"{whose} must have the shape (n, H, W), (n, H, W, C) or (n, C, H, W), got {images.shape}.")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{whose} must have one label an image, got {len(images)} images and labels {labels.shape}.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{whose} must have integer labels, got {labels.dtype}.")
    return Source(labels.astype(np.int64), partial(_taken, images))


def _taken(images: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any]:
    return images[index]


def open_torchvision(name: str, folder: Path, download: bool) -> tuple[Source, Source]:
    """What torchvision reads.

    Notes
    -----
    Its CIFAR files are pickles. torchvision unpickles them after it has compared their MD5 sums with those of the
    published files, so that a file with other contents is refused unread.
    """
    import torchvision.datasets

    known = TORCHVISION[name]
    cls = getattr(torchvision.datasets, known.cls)
    try:
        parts = [cls(str(folder), download=download, **split) for split in known.splits]
    except ImportError:
        raise
    except Exception as error:  # what a cut or missing file raises differs from set to set
        bad = _bad_files(cls, folder)
        raise ValueError(
            f"Data {name!r}: {folder} must hold all files of torchvision's {known.cls}, or {name}.npz, but "
            + (f"{', '.join(bad)} missing or damaged" if bad else f"they are damaged ({type(error).__name__}: {error})")
            + ". Delete them and get them again (in Python: codesign.data.load_data(..., download=True))."
        ) from error
    arrays = ((np.asarray(part.data), np.asarray(getattr(part, "targets", getattr(part, "labels", None))))
              for part in parts)  # fmt: skip
    return tuple(from_arrays(f"Data {name!r}: {known.cls}", *pair) for pair in arrays)  # type: ignore[return-value]


def _bad_files(cls: Any, folder: Path) -> list[str]:
    """Files of a torchvision set that are not there or, where it gives their sums, not as published."""
    from torchvision.datasets.utils import check_integrity

    if hasattr(cls, "base_folder"):
        files = {f"{cls.base_folder}/{name}": md5 for name, md5 in (*cls.train_list, *cls.test_list)}
    elif hasattr(cls, "split_list"):
        files = {cls.split_list[split][1]: cls.split_list[split][2] for split in ("train", "test")}
    else:
        files = {f"{cls.__name__}/raw/{name.removesuffix('.gz')}": None for name, _ in getattr(cls, "resources", ())}
    return [name for name, md5 in files.items() if not check_integrity(str(folder / name), md5)]


def open_folder(folder: Path) -> tuple[Source, Source]:
    """``train/CLASS/*`` and ``test/CLASS/*`` or ``val/CLASS/*``, pictures of one size."""
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if not (folder / "train").is_dir() or test is None:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ValueError(f"Data {str(folder)!r}: it must hold train/ and test/ or val/, it has {there}.")
    parts = [_listed(folder / "train"), _listed(test)]
    if parts[0][0] != parts[1][0]:
        odd = ", ".join(sorted(set(parts[0][0]) ^ set(parts[1][0]))[:8])
        raise ValueError(
            f"Data {str(folder)!r}: train/ and {test.name}/ must have the same classes; not in both: {odd}."
        )
    return tuple(  # type: ignore[return-value]
        Source(np.array([label for _, label in files], np.int64), partial(_pictures, [file for file, _ in files]))
        for _, files in parts
    )


def _listed(folder: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """The classes of a folder, and its pictures with their labels."""
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Data {str(folder)!r}: it must hold a folder with pictures a class: {error}") from None
    return found.classes, found.samples


def _pictures(files: Sequence[str], index: NDArray[np.int64]) -> NDArray[np.uint8]:
    from PIL import Image

    first: tuple[int, ...] | None = None
    pictures = []
    for i in index:
        try:
            with Image.open(files[i]) as picture:
                pixels = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
        except (OSError, SyntaxError) as error:
            raise ValueError(f"Data {files[i]!r}: it must be a whole picture, but {error}.") from None
        first = first or pixels.shape
        if pixels.shape != first:
            raise ValueError(
                f"Data {files[i]!r}: all pictures must have one size, got {pixels.shape[2]} x {pixels.shape[1]} after "
                f"{first[2]} x {first[1]}; resize them."
            )
        pictures.append(pixels)
    return np.stack(pictures)
