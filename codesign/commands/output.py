"""What commands print and write, and the check that they can, which comes before long work."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PLOT_SUFFIXES = (".png", ".pdf", ".svg")


def one_line(error: BaseException) -> str:
    """An exception's message on one line; of a file that fails, its name and what failed."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        more = "; make room and try again, a search with --resume" if error.errno == errno.ENOSPC else ""
        return f"{error.filename}: {error.strerror}{more}"
    return " ".join(str(error).split()) or type(error).__name__


def print_error(error: BaseException) -> None:
    """Say on stderr, in one line, what was wrong."""
    print(f"codesign: error: {one_line(error)}", file=sys.stderr, flush=True)


def progress(items: Iterable[T], unit: str) -> Iterable[T]:
    """The items, with a progress bar on stderr once they take longer than a second."""
    from tqdm import tqdm

    return tqdm(list(items), unit=f" {unit}", delay=1.0, leave=False, ncols=80)


def table(header: Sequence[str], rows: Iterable[Sequence[str] | str], left: int = 1) -> str:
    """Aligned columns under a rule; the first ``left`` columns are flush left, and a row of text stands as it is."""
    lines = [header, *rows]
    widths = [
        max(map(len, column)) for column in zip(*(line for line in lines if not isinstance(line, str)), strict=True)
    ]
    text = [
        line
        if isinstance(line, str)
        else "  ".join(
            cell.ljust(widths[i]) if i < left else cell.rjust(widths[i]) for i, cell in enumerate(line)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *text[1:]])


def array_text(chip: Any) -> str:
    """Rows, columns and, where there are several, windows of a chip's array; empty for a chip without one."""
    sizes = [getattr(chip, name, None) for name in ("rows", "cols", "windows")]
    return "x".join(str(size) for i, size in enumerate(sizes) if size is not None and (i < 2 or size > 1))


def check(path: str | None, suffixes: Iterable[str] = ()) -> None:
    """Refuse an output that cannot be written, before the work whose result it would hold.

    Raises
    ------
    ValueError
        For a suffix that is not offered, a missing or unwritable folder, or a path that is a folder.
    """
    if path is None:
        return
    file, known = Path(path), tuple(suffixes)
    if known and file.suffix.lower() not in known:
        raise ValueError(f"Output {path!r}: its name must end in {', '.join(known)}, got {file.suffix!r}; rename it.")
    if file.is_dir():
        raise ValueError(f"Output {path!r}: it must be a file, got a folder; add a file name.")
    if not file.parent.is_dir():
        raise ValueError(f"Output {path!r}: its folder must exist, got {str(file.parent)!r}; make it first.")
    _check_writable(path, file if file.exists() else file.parent)


def check_folder(path: str) -> None:
    """Refuse a folder that cannot be made or written.

    Raises
    ------
    ValueError
        For a path that is a file, or lies in one, or has no permission.
    """
    folder = Path(path).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir():
        raise ValueError(f"Output {path!r}: it must be a folder, got the file {str(there)!r}; choose another name.")
    _check_writable(path, there)


def _check_writable(path: str, place: Path) -> None:
    if not os.access(place, os.W_OK):
        raise ValueError(f"Output {path!r}: it must be writable, but permission is denied; choose another place.")


@contextlib.contextmanager
def resumable(out: str) -> Iterator[None]:
    """Say after an interrupt how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"go on with --out {out} --resume") from None


def save(axes: Any, path: str) -> None:
    """Write the figure that an Axes, or the first of an array of them, belongs to."""
    getattr(axes, "flat", [axes])[0].figure.savefig(path, dpi=150, bbox_inches="tight")
