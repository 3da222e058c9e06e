"""Blocks and bitwidths of MobileNetV2 together, with the weights of a supernet."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codesign.describe import describe
from codesign.family import AbstractFamily, Progress, plain
from codesign.nets.mobilenetv2 import PRESETS, MobileNetV2Space
from codesign.run_directory import CONFIG_NAME
from codesign.space import Arch
from hwmodels.config import from_fields

if TYPE_CHECKING:
    import torch
    from torch import nn

    from codesign.data import Data
    from codesign.problem import Problem
    from codesign.run_spec import RunSpec
    from codesign.search_result import SearchResult


class MobileNetV2Family(AbstractFamily):
    """`MobileNetV2Space`; shared weights are trained in the run, or taken from another one."""

    strategy = "mpnas"
    start = "supernet"

    def completed(self, spec: RunSpec) -> RunSpec:
        return dataclasses.replace(
            spec, preset=spec.preset or _preset(spec),
            supernet_settings=plain(dataclasses.asdict(spec.supernet_training())),
        )  # fmt: skip

    def fitted(self, spec: RunSpec, data: Data) -> RunSpec:
        _, channels, height, width = data.train.images.shape
        if height != width:
            raise ValueError(f"Data {spec.dataset!r}: images must be square for mobilenetv2, got {height} x {width}.")
        found = {"input_size": height, "in_channels": channels, "classes": data.classes}
        other = [name for name, value in found.items() if spec.space_settings.get(name, value) != value]
        if other:
            raise ValueError(
                f"Data {spec.dataset!r}: images must be those that the space is set to read, but "
                f"{', '.join(f'{name} is {found[name]} and not {spec.space_settings[name]}' for name in other)}. Leave "
                "out these settings of the space: they follow the data."
            )
        if spec.supernet is not None:
            _check_lent(spec.supernet, _weights(spec.supernet).parent / CONFIG_NAME, data)
        return dataclasses.replace(spec, space_settings={**found, **spec.space_settings})

    def space(self, spec: RunSpec) -> MobileNetV2Space:
        preset = spec.preset or _preset(spec)
        MobileNetV2Space.preset(preset)  # says which there are
        space: MobileNetV2Space = from_fields("Space", MobileNetV2Space, {**PRESETS[preset], **spec.space_settings})
        return space

    def task(
        self, spec: RunSpec, data: Data, folder: Path, place: torch.device, progress: Progress | None = None
    ) -> Any:
        from codesign.nets.mobilenetv2_supernet import Supernet
        from codesign.supernet import SupernetTask, load_supernet, train_supernet

        training = spec.supernet_training()
        network, data = Supernet(self.space(spec), spec.seed).to(place), data.to(place)
        if spec.supernet is not None:
            load_supernet(network, _weights(spec.supernet))
            return SupernetTask(network, data, training)
        n_steps = (training.float_epochs + training.epochs) * max(1, len(data.train.labels) // training.batch_size)

        def report(step: int, loss: float) -> None:
            if progress:
                progress(step, n_steps, {} if math.isnan(loss) else {"loss": loss})

        train_supernet(network, data, training, spec.seed, folder, resume=True, progress=report)
        return SupernetTask(network, data, training)

    def accuracy(self, task: Any) -> Callable[[Arch], Mapping[str, float]]:
        from codesign.supernet import SupernetAccuracy, statistics_of

        return SupernetAccuracy(task.network, statistics_of(task.data.train), task.data.search)

    def network(self, spec: RunSpec, arch: Arch, seed: int = 0) -> nn.Module:
        network: nn.Module = self.space(spec).build(arch, seed)
        return network

    def started(self, spec: RunSpec, run: Path, arch: Arch, data: Data) -> nn.Module:
        import torch

        from codesign.nets.mobilenetv2_supernet import Supernet
        from codesign.supernet import load_supernet

        supernet = Supernet(self.space(spec), spec.seed)
        load_supernet(supernet, _weights(spec.supernet or str(run)))
        with torch.no_grad():
            extracted: nn.Module = supernet.extract(arch)
        return extracted

    def layer_bits(self, spec: RunSpec, arch: Arch) -> dict[str, tuple[int, int]]:
        bits: dict[str, tuple[int, int]] = self.space(spec).layer_bits(arch)
        return bits

    def reads(self, spec: RunSpec) -> tuple[tuple[int, ...], int]:
        space = self.space(spec)
        return (space.in_channels, space.input_size, space.input_size), space.classes

    def draw(self, problem: Problem, result: SearchResult) -> tuple[str, Any]:
        from codesign.plots import plot_blocks

        space: Any = getattr(problem.space, "network_space", problem.space)
        return "blocks", plot_blocks(result.options, space.block_shapes, result.headline(ascii=False)).figure


def _preset(spec: RunSpec) -> str:
    return "tiny" if spec.dataset == "digits" else "cifar"


def _check_lent(source: str, config: Path, data: Data) -> None:
    """Refuse the weights of another split, which were trained on images that are to be searched or tested on."""
    if not config.exists():  # a file of weights alone
        return
    trained = json.loads(config.read_bytes()).get("data")
    if trained is not None and trained != json.loads(json.dumps(describe(data))):
        raise ValueError(
            f"Supernet {source!r}: it must have been trained on this split of these images, but was on another, which "
            "may hold images that candidates are scored or tested on. Give the data settings of its run, and its seed "
            "as --data-seed."
        )


def _weights(source: str) -> Path:
    """The file of weights that a run, a folder or a file is."""
    from codesign.supernet import SUPERNET_NAME, WEIGHTS_NAME

    path = Path(source)
    places = (path / SUPERNET_NAME / WEIGHTS_NAME, path / WEIGHTS_NAME, path)
    for place in places:
        if place.is_file():
            return place
    raise ValueError(
        f"Supernet {source!r}: there must be a supernet's weights, got none at "
        f"{' or '.join(map(str, places[:2] if path.is_dir() else places[2:]))}."
    )
