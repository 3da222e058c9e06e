"""What kinds of networks a run can search: how the words of a run become a space, weights, and a torch module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.space import AbstractSpace, Arch

if TYPE_CHECKING:
    import torch
    from torch import nn

    from codesign.data import Data
    from codesign.problem import Problem
    from codesign.run_spec import RunSpec
    from codesign.search_result import SearchResult

#: Called with the number of steps that are done, of how many, and what was measured.
Progress = Callable[[int, int, Mapping[str, float]], object]


class AbstractFamily(ABC):
    """One kind of networks. A concrete one is a value without state; adding one is a file and a line in `FAMILIES`."""

    #: The strategy that a run has unless another is asked for.
    strategy: str
    #: What a network can be trained from besides scratch, as `codesign.trained.FinalTraining` calls it.
    start: str

    @abstractmethod
    def completed(self, spec: RunSpec) -> RunSpec:
        """The run with every default that another version might have otherwise written out."""

    @abstractmethod
    def fitted(self, spec: RunSpec, data: Data) -> RunSpec:
        """The run with what of the network depends on the images.

        Raises
        ------
        ValueError
            For images that the network cannot read.
        """

    @abstractmethod
    def space(self, spec: RunSpec) -> AbstractSpace:
        """The space of the network alone, without choices of the chip."""

    @abstractmethod
    def task(
        self, spec: RunSpec, data: Data, folder: Path, place: torch.device, progress: Progress | None = None
    ) -> Any:
        """The weights that candidates share, with the data on their device: the ``supernet`` of a `Problem`.

        What takes long is kept in ``folder`` on the way, and gone on with.
        """

    @abstractmethod
    def accuracy(self, task: Any) -> Callable[[Arch], Mapping[str, float]]:
        """From the arch of a network to its error and loss on the search set, with the shared weights."""

    @abstractmethod
    def network(self, spec: RunSpec, arch: Arch, seed: int = 0) -> nn.Module:
        """The quantized network of an arch, its weights drawn by a seed, not calibrated."""

    @abstractmethod
    def started(self, spec: RunSpec, run: Path, arch: Arch, data: Data) -> nn.Module:
        """The quantized network of an arch with the weights that the search began with.

        Raises
        ------
        ValueError
            Where they are not there.
        """

    @abstractmethod
    def layer_bits(self, spec: RunSpec, arch: Arch) -> dict[str, tuple[int, int]]:
        """(weight bits, input bits) of each quantized layer of the network of an arch."""

    @abstractmethod
    def reads(self, spec: RunSpec) -> tuple[tuple[int, ...], int]:
        """The shape of one image, channels first, and the number of classes that the network tells apart."""

    @abstractmethod
    def draw(self, problem: Problem, result: SearchResult) -> tuple[str, Any]:
        """A picture of the chosen network and the name of its file: (name, figure)."""

    def before(self, problem: Problem, task: Any) -> str:
        """What is to be said before the search begins; empty where nothing is."""
        return ""


def family(name: str) -> AbstractFamily:
    """The family of a name.

    Raises
    ------
    ValueError
        For an unknown one.
    """
    if name == "mobilenetv2":
        from codesign.family_mobilenetv2 import MobileNetV2Family

        return MobileNetV2Family()
    if name == "bits":
        from codesign.family_bits import BitsFamily

        return BitsFamily()
    raise ValueError(f"the space must be one of {', '.join(FAMILIES)}, got {name!r}.")


#: Kinds of spaces that a run can search.
FAMILIES = ("mobilenetv2", "bits")


def plain(value: Any) -> Any:
    """Values as YAML writes them."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
