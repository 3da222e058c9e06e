"""Cycles of a systolic array as SCALE-Sim counts them, one fold after another."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwmodels.cost import PackedCosts
from hwmodels.mapper import CHIP_COLUMNS
from hwmodels.workload import PACKED_COLUMNS, Workload

if TYPE_CHECKING:
    from hwmodels.mac_array import MacArray

Dataflow = Literal["weight-stationary", "output-stationary", "input-stationary"]
_AT = {name: i for i, name in enumerate(PACKED_COLUMNS)}


def matrix_sizes(layers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The matrix product that each group of a layer is: output pixels, output channels, reduction length.

    Parameters
    ----------
    layers : ndarray of int64, shape (n, len(PACKED_COLUMNS))

    Notes
    -----
    Where a stride does not divide the input, SCALE-Sim rounds the output size up; frameworks round down.
    """

    def out(size: str, pads: tuple[str, str], kernel: str, axis: str) -> NDArray[np.int64]:
        padded = layers[:, _AT[size]] + sum(layers[:, _AT[pad]] for pad in pads)
        reach = layers[:, _AT[f"dilation_{axis}"]] * (layers[:, _AT[kernel]] - 1) + 1
        return _ceil(padded - reach, layers[:, _AT[f"stride_{axis}"]]) + 1

    rows = out("H", ("pad_top", "pad_bottom"), "R", "h")
    cols = out("W", ("pad_left", "pad_right"), "S", "w")
    reduction = layers[:, _AT["C"]] * layers[:, _AT["R"]] * layers[:, _AT["S"]]
    return layers[:, _AT["N"]] * rows * cols, layers[:, _AT["K"]], reduction


def scalesim_cycles(layers: NDArray[np.int64], rows: int, cols: int, dataflow: Dataflow) -> NDArray[np.int64]:
    r"""Compute cycles of SCALE-Sim 3.0 for packed layers, without memory stalls.

    Parameters
    ----------
    layers : ndarray of int64, shape (n, len(PACKED_COLUMNS))
    rows, cols : int
        The array.
    dataflow : {"weight-stationary", "output-stationary", "input-stationary"}

    Returns
    -------
    ndarray of int64, shape (n,)
        A layer of several groups runs them one after another.

    Notes
    -----
    With :math:`S_R, S_C, T` what lies along the rows, along the columns and in time,

    .. math::
        \left\lceil S_R / R \right\rceil \left\lceil S_C / C \right\rceil (2 R + C + T - 2) - 1

    and R instead of 2 R for output-stationary. (S_R, S_C, T) are (reduction, output channels, pixels) for
    weight-stationary, (pixels, output channels, reduction) for output-stationary, and (reduction, pixels, output
    channels) for input-stationary.

    References
    ----------
    Samajdar et al., A systematic methodology for characterizing scalability of DNN accelerators using SCALE-Sim,
    ISPASS 2020; SCALE-Sim 3.0, run on 270 random layers, which this reproduces.

    Examples
    --------
    >>> from hwmodels.workload import Layer, pack
    >>> layer = Layer("conv", 48, 24, in_size=(5, 6), kernel_size=3)
    >>> scalesim_cycles(pack([layer]), 8, 8, "weight-stationary")  # 54 * 3 * (2 * 8 + 8 + 12 - 2) - 1
    array([5507])
    """
    pixels, channels, reduction = matrix_sizes(layers)
    along_rows, along_cols, time = {
        "weight-stationary": (reduction, channels, pixels),
        "output-stationary": (pixels, channels, reduction),
        "input-stationary": (reduction, pixels, channels),
    }[dataflow]
    load = rows if dataflow == "output-stationary" else 2 * rows
    cycles: NDArray[np.int64] = _ceil(along_rows, rows) * _ceil(along_cols, cols) * (load + cols + time - 2) - 1
    return cycles * layers[:, _AT["G"]]


class Timings(NamedTuple):
    """Cycles that the array is busy with each MAC layer of a network; arrays of shape (n_mac_layers,)."""

    scalesim: NDArray[np.int64]
    overlapped: NDArray[np.int64]


def compare_timings(workload: Workload, chip: MacArray) -> Timings:
    """How long a systolic array works on each layer by either timing, its filling and draining included.

    Parameters
    ----------
    workload : Workload
    chip : MacArray
        Its own ``timing`` does not matter.

    Notes
    -----
    The overlapping folds are those of the mapping: it cuts layers into tiles that fit the buffers, and puts several
    groups on the array at once, which SCALE-Sim does not.

    Examples
    --------
    >>> from hwmodels import MacArray, networks
    >>> timings = compare_timings(networks.resnet18(), MacArray(dataflow="weight-stationary"))
    >>> bool((timings.scalesim > timings.overlapped).all())
    True
    """
    overlapped = dataclasses.replace(chip, timing="overlapped")
    fill_cycles = int(overlapped.kernel_chip[CHIP_COLUMNS.index("fill_cycles")])

    def busy(costs: PackedCosts) -> NDArray[np.int64]:
        pairs = zip(workload.layers, costs, strict=True)
        return np.array([cost.compute_cycles for layer, cost in pairs if layer.is_mac], dtype=np.int64)

    serial = dataclasses.replace(chip, timing="scalesim")
    return Timings(busy(serial.costs(workload)), busy(overlapped.costs(workload)) + fill_cycles)


def _ceil(a: NDArray[np.int64], b: NDArray[np.int64] | int) -> NDArray[np.int64]:
    quotient: NDArray[np.int64] = -(-a // b)
    return quotient
