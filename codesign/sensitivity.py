"""How much a network loses by fewer bits in one layer, and how well such losses add up."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codesign.space import Arch, BitwidthSpace

Floats = NDArray[np.float64]
Accuracy = Callable[[Arch], Mapping[str, float]]


@dataclass(frozen=True, eq=False)
class Sensitivities:
    """The loss that each layer adds at each pair of bitwidths, all other layers at the widest.

    Parameters
    ----------
    layers : tuple of str
    bits : tuple of int
        Ascending.
    base_loss : float
        Of the network at the widest bits, in nats.
    increase : ndarray, shape (n_layers, n_bits, n_bits)
        By layer, weight bits and input bits, in nats. Negative where fewer bits do better on these images. Where the
        space fixes the bits of inputs, the last axis has length 1.
    """

    layers: tuple[str, ...]
    bits: tuple[int, ...]
    base_loss: float
    increase: Floats

    def predict(self, archs: ArrayLike) -> Floats:
        """The loss of archs, if what layers add did add up; shape (n,)."""
        rows = np.asarray(archs).reshape(len(archs), len(self.layers), -1)  # type: ignore[arg-type]
        inputs = rows[:, :, 1] if rows.shape[2] == 2 else 0
        return self.base_loss + self.increase[np.arange(len(self.layers)), rows[:, :, 0], inputs].sum(axis=1)

    def monotone(self) -> Sensitivities:
        """The same where fewer bits never lose less, nor less than nothing.

        What was measured otherwise is mostly noise of few images; each entry is raised to the largest that is measured
        with as many bits or more for both operands.
        """
        raised = np.maximum(self.increase, 0.0)[:, ::-1, ::-1]
        raised = np.maximum.accumulate(np.maximum.accumulate(raised, axis=1), axis=2)
        return dataclasses.replace(self, increase=raised[:, ::-1, ::-1].copy())

    def factors(self, space: BitwidthSpace) -> list[tuple[tuple[int, int], Floats]]:
        """The increase as an objective for `codesign.knapsack.knapsack`.

        Raises
        ------
        ValueError
            For a space of other layers or other bitwidths.
        """
        shape = (len(space.searched), len(space.bits), len(space.bits) if len(space.operands) == 2 else 1)
        if (self.layers, self.bits) != (space.searched, space.bits) or self.increase.shape != shape:
            raise ValueError(
                f"Sensitivities: the space must search what they were measured on, {len(self.layers)} layers "
                f"({self.layers[0]} to {self.layers[-1]}) with bits {self.bits}, got {len(space.searched)} "
                f"({space.searched[0]} to {space.searched[-1]}) with bits {space.bits}."
            )
        if len(space.operands) == 1:
            return [((j,), values[:, 0]) for j, values in enumerate(self.increase)]
        return [((2 * j, 2 * j + 1), values) for j, values in enumerate(self.increase)]

    def save(self, path: str | Path) -> None:
        """Write them as ``.npz``."""
        with open(path, "wb") as file:
            np.savez_compressed(
                file, layers=np.array(self.layers), bits=np.array(self.bits), base_loss=np.array(self.base_loss),
                increase=self.increase,
            )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> Sensitivities:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            For a file that holds no sensitivities.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                layers, bits = tuple(arrays["layers"].tolist()), tuple(arrays["bits"].tolist())
                increase = arrays["increase"].astype(np.float64)
                if increase.shape not in [(len(layers), len(bits), n) for n in (1, len(bits))]:
                    raise ValueError(f"{len(layers)} layers and {len(bits)} bitwidths, but shape {increase.shape}")
                return cls(layers, bits, float(arrays["base_loss"]), increase)
        except (AttributeError, BadZipFile, EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Sensitivities: {str(path)!r} must be a file that save() wrote: {error}.") from None


def sensitivities(
    accuracy: Accuracy, space: BitwidthSpace, progress: Callable[[], object] | None = None
) -> Sensitivities:
    """Measure the loss of a network with one layer at a time at each pair of bitwidths.

    Parameters
    ----------
    accuracy : callable
        From an arch of the space to its ``"loss"``, such as a `codesign.quantized_accuracy.QuantizedAccuracy`.
    space : BitwidthSpace
        Pinned layers stay at their bits.
    progress : callable, optional
        Called after each of the n_layers * (n_bits**2 - 1) + 1 measurements.

    Returns
    -------
    Sensitivities

    Raises
    ------
    ValueError
        For a loss that is no number.

    Notes
    -----
    :math:`s_l(w, a) = L(l \\text{ at } (w, a), \\text{all others at } b_{max}) - L(\\text{all at } b_{max})`, L being
    the mean cross entropy. Layers are measured from the first to the last, so that of each measurement what lies
    before its layer need not be computed again.
    """
    base = widest_loss(accuracy, space)
    if progress:
        progress()
    n = len(space.searched)
    increase = np.stack([layer_sensitivities(accuracy, space, layer, base, progress) for layer in range(n)])
    return Sensitivities(space.searched, space.bits, base, increase)


def widest_loss(accuracy: Accuracy, space: BitwidthSpace) -> float:
    """The loss at the widest bits, in nats."""
    return _loss(accuracy, space, [len(space.bits) - 1] * len(space.choices))


def layer_sensitivities(
    accuracy: Accuracy,
    space: BitwidthSpace,
    layer: int,
    base_loss: float,
    progress: Callable[[], object] | None = None,
    pairs: bool = True,
) -> Floats:
    """What one layer adds to the loss at each pair of bitwidths, or at each bitwidth of its weights.

    Parameters
    ----------
    accuracy, space, progress
        As in `sensitivities`.
    layer : int
        Its place among ``space.searched``.
    base_loss : float
        From `widest_loss`.
    pairs : bool
        Measure each pair of bitwidths. Else weights and inputs are measured apart, with the other operand at the widest
        bits, and a pair adds what both do: 2 (n - 1) measurements in place of n^2 - 1 for n bitwidths.

    Returns
    -------
    ndarray, shape (n_bits, n_bits) or (n_bits, 1)
    """
    n, n_bits = len(space.operands), len(space.bits)
    widest = [n_bits - 1] * len(space.choices)
    increase = np.zeros((n_bits, n_bits if n == 2 else 1))
    for w, a in np.ndindex(increase.shape):
        arch = [*widest[: n * layer], *(w, a)[:n], *widest[n * (layer + 1) :]]
        if arch != widest and (pairs or n == 1 or n_bits - 1 in (w, a)):
            increase[w, a] = _loss(accuracy, space, arch) - base_loss
            if progress:
                progress()
    if n == 2 and not pairs:
        increase[:-1, :-1] = increase[:-1, -1:] + increase[-1:, :-1]
    return increase


class Additivity(NamedTuple):
    """Summed sensitivities against measured losses."""

    r2: float  #: 1 - sum (measured - predicted)^2 / sum (measured - mean)^2; below 0 where the mean predicts better
    tau: float  #: Kendall's tau-b, from -1 to 1: whether the order is right
    predicted: Floats  #: losses in nats, shape (n,)
    measured: Floats  #: losses in nats, shape (n,)


def additivity(
    found: Sensitivities,
    accuracy: Accuracy,
    space: BitwidthSpace,
    archs: Sequence[Arch] | None = None,
    rng: np.random.Generator | None = None,
) -> Additivity:
    """Compare summed sensitivities with the measured loss.

    Parameters
    ----------
    found : Sensitivities
    accuracy, space
        As they were given to `sensitivities`.
    archs : sequence of tuple of int, optional
        At least two, whose losses differ. By default 20, drawn uniformly.
    rng : numpy.random.Generator, optional
        Draws them; None: a generator with seed 0.

    Raises
    ------
    ValueError
        For fewer than two archs, or sensitivities of another space.
    """
    from scipy.stats import kendalltau

    found.factors(space)
    rng = rng or np.random.default_rng(0)
    archs = [space.sample(rng) for _ in range(20)] if archs is None else [space.check(arch) for arch in archs]
    if len(archs) < 2:
        raise ValueError(f"additivity: there must be at least two archs to compare, got {len(archs)}.")
    predicted, measured = found.predict(archs), np.array([_loss(accuracy, space, arch) for arch in archs])
    deviation = ((measured - measured.mean()) ** 2).sum()
    r2 = 1 - ((measured - predicted) ** 2).sum() / deviation if deviation > 0 else math.nan
    return Additivity(float(r2), float(kendalltau(predicted, measured).statistic), predicted, measured)


def _loss(accuracy: Accuracy, space: BitwidthSpace, arch: Sequence[int]) -> float:
    loss = accuracy(tuple(arch))["loss"]
    if not math.isfinite(loss):
        raise ValueError(f"sensitivities: the loss must be a number, got {loss} at {space.decode(arch)}.")
    return loss
