"""The bitwidths of a trained network, layer by layer."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.family import AbstractFamily, Progress, plain
from codesign.limits import cheapest
from codesign.space import Arch, BitwidthSpace
from hwmodels.config import from_fields
from hwmodels.workload import Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

    from codesign.data import Data
    from codesign.network_task import NetworkTask
    from codesign.problem import Problem
    from codesign.run_spec import RunSpec
    from codesign.search_result import SearchResult

#: What is chosen from unless ``space_settings`` say otherwise.
BITS = (2, 3, 4, 5, 6, 7, 8)
#: Fewest images that steps can be fitted to.
FEWEST_IMAGES = 8
#: What may become of BatchNorm statistics.
STATISTICS = ("match", "renew", "keep")


@dataclass(frozen=True)
class NetworkSettings:
    """How a trained network is read and quantized.

    Parameters
    ----------
    input_shape : tuple of int, optional
        Of one image, channels first; that of the data where it is not given.
    classes : int, optional
        Outputs of a network that is named and not made by a factory; see `codesign.torch_networks.load_module`.
    weight_quantizer, input_quantizer : str
        Names in `codesign.quant.QUANTIZERS`.
    per_channel : bool
        One step for each output channel of a weight.
    calibration : int
        Training images that steps are fitted to, and by which BatchNorm statistics follow the bits.
    statistics : str
        How they do: "match" corrects those of the file by what quantization changes
        (`codesign.quant.match_batchnorm`), "renew" replaces them (`codesign.quant.recalibrate_batchnorm`), "keep"
        leaves them.
    tune_images : int
        Training images that each candidate is tuned on before it is scored; 0: none.
    float_layers : tuple of str
        MAC layers that stay in float, or "auto" for all that cannot be quantized: they are priced at ``float_bits``.
    float_bits : int
        What the chip is taken to run those at: by default the widest that a Bit Fusion array of 8 bits takes.

    Raises
    ------
    ValueError
        For numbers out of range.
    """

    input_shape: tuple[int, ...] | None = None
    classes: int | None = None
    weight_quantizer: str = "uniform"
    input_quantizer: str = "uniform"
    per_channel: bool = False
    calibration: int = 512
    statistics: str = "match"
    tune_images: int = 0
    float_layers: tuple[str, ...] = ()
    float_bits: int = 8

    def __post_init__(self) -> None:
        for name in ("input_shape", "float_layers"):
            value = getattr(self, name)
            if value is not None:
                value = (value,) if isinstance(value, (str, int)) else tuple(value)
                object.__setattr__(self, name, value)
        if self.statistics not in STATISTICS:
            raise ValueError(f"Network: statistics must be one of {', '.join(STATISTICS)}, got {self.statistics!r}.")
        if self.calibration < FEWEST_IMAGES:
            raise ValueError(
                f"Network: calibration must have at least {FEWEST_IMAGES} images, got {self.calibration}; steps that "
                "are fitted to fewer say little."
            )


class BitsFamily(AbstractFamily):
    """`BitwidthSpace` over a torch network with weights from a file."""

    strategy = "milp"
    start = "weights"

    def completed(self, spec: RunSpec) -> RunSpec:
        if spec.network is None or spec.weights is None:
            raise ValueError(
                "Run: the bits of a trained network are searched, so a network and its weights must be given, such as "
                "codesign search resnet20 --weights resnet20.safetensors; got "
                f"network {spec.network!r} and weights {spec.weights!r}."
            )
        return dataclasses.replace(
            spec,
            space_settings={"bits": list(BITS), **plain(spec.space_settings)},
            network_settings=plain(dataclasses.asdict(_settings(spec))),
            supernet_settings=plain(dataclasses.asdict(spec.supernet_training())),
        )

    def fitted(self, spec: RunSpec, data: Data) -> RunSpec:
        settings = _settings(spec)
        shape = tuple(data.train.images.shape[1:])
        if settings.input_shape not in (None, shape):
            raise ValueError(
                f"Data {spec.dataset!r}: images must have the network's shape {settings.input_shape}, got {shape}."
            )
        if len(data.train.labels) < settings.calibration:
            raise ValueError(
                f"Network: there must be {settings.calibration} training images to calibrate on, got "
                f"{len(data.train.labels)}; ask for fewer with calibration=."
            )
        return dataclasses.replace(spec, network_settings={**spec.network_settings, "input_shape": list(shape)})

    def space(self, spec: RunSpec) -> BitwidthSpace:
        settings, workload, floats = _read(spec)
        given = {"bits": BITS, **spec.space_settings}
        pinned = {**dict.fromkeys(floats, settings.float_bits), **given.pop("pinned", {})}
        return BitwidthSpace(workload, tuple(given.pop("bits")), _pairs(pinned, workload), **given)

    def task(
        self, spec: RunSpec, data: Data, folder: Path, place: torch.device, progress: Progress | None = None
    ) -> NetworkTask:
        from codesign.network_task import NetworkTask

        settings, space = _settings(spec), self.space(spec)
        network = self._quantized(spec, space, space.reference).to(place)
        self._check(spec, data)
        data = data.to(place)
        statistics = data.train.images[: settings.calibration]
        self._give_weights(spec, network, statistics)
        _calibrate(network, statistics)
        return NetworkTask(
            network, space, data, None if settings.statistics == "keep" else statistics, spec.supernet_training(),
            settings.tune_images, "renew" if settings.statistics == "renew" else "match",
        )  # fmt: skip

    def accuracy(self, task: NetworkTask) -> Callable[[Arch], Mapping[str, float]]:
        return task.accuracy()

    def network(self, spec: RunSpec, arch: Arch, seed: int = 0) -> nn.Module:
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self._quantized(spec, self.space(spec), arch, only=True)

    def started(self, spec: RunSpec, run: Path, arch: Arch, data: Data) -> nn.Module:
        from codesign.quant import match_batchnorm, norm_references

        settings = _settings(spec)
        network, images = self.network(spec, arch), data.train.images[: settings.calibration]
        self._give_weights(spec, network, images)
        _calibrate(network, images)
        if settings.statistics == "match":
            match_batchnorm(network, images, norm_references(network, images))
        return network

    def layer_bits(self, spec: RunSpec, arch: Arch) -> dict[str, tuple[int, int]]:
        return _quantized_bits(spec, self.space(spec), arch)

    def reads(self, spec: RunSpec) -> tuple[tuple[int, ...], int]:
        settings = _settings(spec)
        assert settings.input_shape is not None
        return settings.input_shape, _outputs(str(spec.network), settings.input_shape, settings.classes)

    def draw(self, problem: Problem, result: SearchResult) -> tuple[str, Any]:
        from codesign.plots import plot_bits

        workload = problem.space.workload(result.trial.arch)
        return "bits", plot_bits(workload, result.headline(ascii=False)).figure

    def before(self, problem: Problem, task: NetworkTask) -> str:
        """How good the network is before bits are taken from it, and the range of each metric under a limit."""
        from codesign.accuracy import evaluate
        from codesign.metrics import quantity
        from codesign.quant import set_bits

        space: Any = getattr(problem.space, "network_space", problem.space)
        scores = task.accuracy()(space.reference)
        set_bits(network := copy.deepcopy(task.network), None)
        exact = evaluate(network, task.data.search)
        errors = [quantity("error", found["error"]) for found in (exact, scores)]
        said = (
            f"On the search set: error {errors[0]} in float, {errors[1]} at {_reference_bits(space)} bits; loss "
            f"{exact['loss']:.4f} and {scores['loss']:.4f} nats"
        )
        ends = reach_table([problem])
        return f"{said}\n\n{ends}" if ends else said

    # ------------------------------------------------------------------------------------------------- parts

    def _quantized(self, spec: RunSpec, space: BitwidthSpace, arch: Arch, only: bool = False) -> nn.Module:
        """The network at the bits of an arch; unless ``only`` those are wanted, it can be switched to all others."""
        from codesign.quant import quantize
        from codesign.torch_networks import load_module

        settings, _, floats = _read(spec)
        widths = {bits for name, some in space.bitwidths.items() if name not in floats for bits in some}
        return quantize(
            load_module(str(spec.network), settings.classes), _quantized_bits(spec, space, arch),
            () if only else widths, weight_quantizer=settings.weight_quantizer,
            input_quantizer=settings.input_quantizer, per_channel=settings.per_channel,
        )  # fmt: skip

    def _give_weights(self, spec: RunSpec, network: nn.Module, images: torch.Tensor) -> None:
        """The weights of the file, BatchNorm taken out of them where it was folded. Steps are not in it."""
        from codesign.quant import unfold_batchnorm
        from codesign.torch_networks import load_module, load_weights

        plain_network = load_module(str(spec.network), _settings(spec).classes)
        load_weights(plain_network, str(spec.weights), f"{spec.network}")
        unfold_batchnorm(plain_network.to(images.device), images)
        network.load_state_dict(plain_network.state_dict(), strict=False)

    def _check(self, spec: RunSpec, data: Data) -> None:
        _, classes = self.reads(spec)
        labelled = int(max(part.labels.max() for part in data)) + 1
        if labelled > classes:
            raise ValueError(
                f"Data {spec.dataset!r}: labels must be among the {classes} outputs of {spec.network}, got "
                f"{labelled} classes; set classes=, or give the data that the weights are for."
            )


def reach_table(problems: Iterable[Problem]) -> str:
    """Both ends of the range of each metric under a limit, and where in it the limit lies; empty without limits."""
    from codesign.commands.output import table
    from codesign.metrics import LABELS, quantity
    from codesign.search_result import reference

    rows, bits = [], 8
    for problem in problems:
        bits = _reference_bits(getattr(problem.space, "network_space", problem.space))
        _, whole = reference(problem)
        for name, limit in problem.limits.items() if whole else ():
            end = cheapest(problem, name)
            share = (limit - end) / (whole[name] - end) if whole[name] != end else 1.0
            rows.append((
                LABELS.get(name, (name,))[0], quantity(name, end), quantity(name, whole[name]), quantity(name, limit),
                f"{limit / whole[name]:.3f}x", f"{100 * share:.1f} %",
            ))  # fmt: skip
    header = ("", "cheapest", f"at {bits} bits", "limit", f"of {bits} bits", "of the way up")
    return table(header, rows) if rows else ""


def _reference_bits(space: Any) -> int:
    """The bitwidth of the network that limits refer to (`BitwidthSpace.reference`)."""
    return 8 if 8 in space.bits else int(max(space.bits))


def _settings(spec: RunSpec) -> NetworkSettings:
    settings: NetworkSettings = from_fields("Network", NetworkSettings, spec.network_settings)
    return settings


def _read(spec: RunSpec) -> tuple[NetworkSettings, Workload, tuple[str, ...]]:
    """The settings, the workload, and the layers that stay in float.

    Raises
    ------
    ValueError
        Where the shape of an image is not known yet, and as of `_float_layers`.
    """
    settings = _settings(spec)
    if settings.input_shape is None:
        raise ValueError("Network: input_shape must be known; load the data first, or set it.")
    workload, quantizable = _traced(str(spec.network), settings.input_shape, settings.classes)
    return settings, workload, _float_layers(spec, settings, workload, quantizable)


@lru_cache(maxsize=8)
def _traced(network: str, input_shape: tuple[int, ...], classes: int | None) -> tuple[Workload, frozenset[str]]:
    """The workload of a network, and the names of the layers that can be quantized."""
    from codesign.quant.layers import QUANTIZED
    from codesign.torch_networks import load_module
    from hwmodels.from_torch import from_torch

    module = load_module(network, classes)
    ran: set[str] = set()  # where a module reads the weights of another, that one does not run itself
    hooks = [
        layer.register_forward_pre_hook(lambda _, __, name=name: ran.add(name))  # type: ignore[misc]
        for name, layer in module.named_modules()
        if type(layer) in QUANTIZED
    ]
    try:
        workload = from_torch(module, (1, *input_shape), name=network.partition(":")[2] or network)
    finally:
        for hook in hooks:
            hook.remove()
    return workload, frozenset(ran)


@lru_cache(maxsize=8)
def _outputs(network: str, input_shape: tuple[int, ...], classes: int | None) -> int:
    """How many classes a network tells apart."""
    import torch

    from codesign.torch_networks import load_module

    with torch.no_grad():
        return int(load_module(network, classes)(torch.zeros(1, *input_shape)).shape[-1])


def _float_layers(
    spec: RunSpec, settings: NetworkSettings, workload: Workload, quantizable: frozenset[str]
) -> tuple[str, ...]:
    """The MAC layers that stay in float.

    Raises
    ------
    ValueError
        For names that are none, and for layers that cannot be quantized and were not named.
    """
    names = [layer.name for layer in workload.mac_layers]
    again = {name.partition("@")[0] for name in names if name not in quantizable and "@" in name}
    cannot = [name for name in names if name not in quantizable or name in again]
    asked = tuple(cannot) if settings.float_layers == ("auto",) else settings.float_layers
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise ValueError(
            f"Network {spec.network!r}: float_layers must be MAC layers of it, got {', '.join(unknown)}; the layers "
            f"are {', '.join(names)}."
        )
    left = [name for name in cannot if name not in asked]
    if left:
        raise ValueError(
            f"Network {spec.network!r}: each MAC layer must be a convolution or a linear layer that runs once, as a "
            f"module, to be quantized, but {', '.join(left)} {'is' if len(left) == 1 else 'are'} not; leave such "
            "layers in float with --float-layers auto, or name them."
        )
    return asked


def _pairs(pinned: Mapping[str, Any], workload: Workload) -> dict[str, Any]:
    """Pinned layers; "first" and "last" are the first and last MAC layer."""
    names = [layer.name for layer in workload.mac_layers]
    ends = {"first": names[0], "last": names[-1]}
    layers = {given: given if given in names else ends.get(given, given) for given in pinned}
    for layer in layers.values():
        same = [given for given, other in layers.items() if other == layer]
        if len(same) > 1:
            raise ValueError(f"Network: a layer must be pinned once, but {' and '.join(same)} are one.")
    return {layers[name]: tuple(bits) if isinstance(bits, Sequence) else bits for name, bits in pinned.items()}


def _quantized_bits(spec: RunSpec, space: BitwidthSpace, arch: Arch) -> dict[str, tuple[int, int]]:
    """Bits of the layers that are quantized."""
    _, _, floats = _read(spec)
    return {name: bits for name, bits in space.layer_bits(arch).items() if name not in floats}


def _calibrate(network: nn.Module, images: torch.Tensor) -> None:
    from codesign.quant import calibrate

    calibrate(network, images)
