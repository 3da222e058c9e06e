"""A trained network in a folder of its own: weights, architecture and bits, layer table, chip."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from codesign.describe import describe, versions
from codesign.evaluation import EVALUATION_NAME, report
from codesign.family import family
from codesign.run_spec import RunSpec
from codesign.state_file import write_atomically
from codesign.trained import WEIGHTS_NAME, Trained, layer_bits, network_arch
from codesign.trial import sync_folder
from hwmodels.cost import CostReport

NETWORK_NAME, TABLE_NAME, CHIP_NAME = "network.json", "layers.csv", "chip.yaml"


def export(trained: Trained, out: str | os.PathLike[str], force: bool = False) -> Path:
    """Write a trained network to a folder, all of it or nothing.

    Parameters
    ----------
    trained : Trained
    out : path-like
        Made with ``weights.safetensors``, ``network.json`` (architecture, bits, images, cost), ``layers.csv`` (one
        line a layer), ``chip.yaml``, and ``evaluation.json`` where the network was evaluated.
    force : bool
        Replace another exported network.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        Where ``out`` holds another network and ``force`` is false, or anything that is no exported network.
    OSError
        Where the disk does not take it. What was there before stays.
    """
    out = Path(out)
    fresh, old = (out.with_name(f".{out.resolve().name}.{name}") for name in ("new", "old"))
    _check(trained, out, force)
    shutil.rmtree(fresh, ignore_errors=True)  # what an export left that was interrupted
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    fresh.mkdir()
    try:
        for name, data in _files(trained).items():
            write_atomically(fresh / name, data)
        sync_folder(fresh)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        fresh.rename(out)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    sync_folder(out.absolute().parent)
    shutil.rmtree(old, ignore_errors=True)
    return out


def load_export(folder: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """The network that a folder holds, and what its ``network.json`` says.

    Raises
    ------
    ValueError
        Where the folder is not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    try:
        record = json.loads((folder / NETWORK_NAME).read_bytes())
        spec = RunSpec.from_fields({name: record[name] for name in _NETWORK_FIELDS if name in record})
        network = family(spec.family).network(spec, tuple(record["arch"]))
        network.load_state_dict(load((folder / WEIGHTS_NAME).read_bytes()))
    except (OSError, KeyError, TypeError, RuntimeError, SafetensorError, ValueError) as error:
        raise ValueError(f"{folder}: it must hold an exported network, whole, but {error}.") from None
    return network.eval(), record


#: What of a run says how its networks are built.
_NETWORK_FIELDS = ("family", "network", "network_settings", "preset", "space_settings")


def _check(trained: Trained, out: Path, force: bool) -> None:
    if out.is_dir() and not any(out.iterdir()):
        return
    if not out.exists():
        return
    try:
        there = json.loads((out / NETWORK_NAME).read_bytes())["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{out}: it must be a new folder or hold an exported network, but it holds something else, which is "
            "left alone; choose another name."
        ) from None
    if there != trained.record["weights"] and not force:
        raise ValueError(f"{out}: it holds another network; choose another name, or replace it with --force.")


def _files(trained: Trained) -> dict[str, bytes]:
    """The contents of each file by its name."""
    from hwmodels.config import to_yaml

    spec, trial = trained.run.spec, trained.trial
    space = spec.network_space()
    arch = network_arch(trained.run, trial)
    cost = report(trained)
    chip = spec.space().hardware(trial.arch, spec.hardware_model())
    record = {
        **{name: value for name in _NETWORK_FIELDS if (value := describe(getattr(spec, name)))},
        "arch": list(arch),
        "options": {name: _plain(option) for name, option in space.decode(arch).items()},
        "bits": {name: {"weight_bits": w, "input_bits": a} for name, (w, a) in layer_bits(trained.run, trial).items()},
        "chip": describe(chip),
        "images": _images(trained),
        "metrics": cost.metrics(),
        "limits": trained.run.limits,
        "trial": trial.number,
        "training": trained.record["training"],
        "weights": trained.record["weights"],
        "versions": versions(),
    }
    files = {
        WEIGHTS_NAME: (trained.folder / WEIGHTS_NAME).read_bytes(),
        NETWORK_NAME: (json.dumps(record, indent=1) + "\n").encode(),
        TABLE_NAME: _csv(_layer_rows(cost)),
    }
    with contextlib.suppress(ValueError):  # a chip of measured costs has no such file; network.json describes it
        files[CHIP_NAME] = to_yaml(chip).encode()
    evaluation = trained.folder / EVALUATION_NAME
    if evaluation.exists():
        files[EVALUATION_NAME] = evaluation.read_bytes()
    return files


def _images(trained: Trained) -> dict[str, Any]:
    """What the network reads, and how pixels become that."""
    scaling = trained.record["scaling"]
    shape = list(family(trained.run.spec.family).reads(trained.run.spec)[0])
    return {"shape": shape, "note": "(pixels / largest - mean) / std", **scaling} if scaling else {"shape": shape}


def _plain(option: Any) -> Any:
    return option._asdict() if hasattr(option, "_asdict") else option


def _layer_rows(cost: CostReport) -> list[dict[str, Any]]:
    """For each layer its shape, its bits and its cost."""
    shapes = ("in_channels", "out_channels", "in_size", "kernel_size", "stride", "padding", "groups")
    return [
        {**row, **{name: _text(getattr(layer, name)) for name in shapes}}
        for layer, row in zip(cost.workload.layers, cost.rows(), strict=True)
    ]


def _text(value: Any) -> Any:
    return "x".join(map(str, value)) if isinstance(value, tuple) else value


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
