"""A trained network as a user names it: a torch module, and its weights from a file that can do no harm."""

from __future__ import annotations

import difflib
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codesign.networks import call_factory

#: Networks for CIFAR's images, by name; others are torchvision's.
CIFAR = ("resnet20", "resnet32", "resnet44", "resnet56")
#: How many keys an error names.
MOST_NAMED = 4
#: Suffixes of files that torch pickles.
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".tar", ".bin")


def load_module(source: str, classes: int | None = None) -> nn.Module:
    """The torch module that a name stands for, its weights drawn at random, in evaluation mode.

    Parameters
    ----------
    source : str
        "resnet20", "resnet32", "resnet44" or "resnet56" for CIFAR's images, a classifier of torchvision's, or
        ``package.module:factory``, a callable without arguments that returns a module.
    classes : int, optional
        Outputs of a network that is named; 10 and torchvision's 1000 where it is not given.

    Raises
    ------
    ValueError
        For a source that is none of these.
    """
    if ":" in source:
        made = call_factory(source)
        if not isinstance(made, nn.Module):
            raise ValueError(f"Network {source!r}: the factory must return a torch module, got {type(made).__name__}.")
        return made.eval()
    if source in CIFAR:
        from codesign.nets.resnet_cifar import CifarResNet

        return CifarResNet(int(source[len("resnet") :]), classes or 10).eval()
    return _from_torchvision(source, classes)


def _from_torchvision(name: str, classes: int | None) -> nn.Module:
    try:
        from torchvision import models
    except ImportError:
        raise ValueError(
            f"Network {name!r}: it must be one of {', '.join(CIFAR)}, or package.module:factory, where torchvision is "
            "not installed."
        ) from None
    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, [*CIFAR, *known], n=3)
        raise ValueError(
            f"Network {name!r}: it must be {', '.join(CIFAR)}, a classifier of torchvision, or package.module:factory"
            f"{f'; near it are {chr(44).join(near)}' if near else ''}."
        )
    given: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    module: nn.Module = models.get_model(name, weights=None, **given)
    return module.eval()


def load_weights(module: nn.Module, path: str | os.PathLike[str], whose: str = "the network") -> None:
    """Give a module the weights of a safetensors file.

    Parameters
    ----------
    module : nn.Module
    path : path-like
        Names and shapes as in ``module.state_dict()``.
    whose : str
        The network's name, for errors.

    Raises
    ------
    ValueError
        For a file that is missing, a pickle, or damaged; and for weights that are not those of the module, with the
        names that are missing, unknown or of another shape.
    """

    def wanted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All but counters, which older files do not have and nothing here reads."""
        return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}

    weights, own = wanted(read_weights(path)), wanted(module.state_dict())
    missing = [name for name in own if name not in weights]
    unknown = sorted(name for name in weights if name not in own)
    other = [
        f"{name} {_shape(tensor)} and not {_shape(own[name])}"
        for name, tensor in weights.items()
        if name in own and tensor.shape != own[name].shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": other}
    wrong = [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]
    if wrong:
        prefixed = unknown and all(name.removeprefix("module.") in own for name in unknown)
        hint = " Names that begin with module. are those of a DataParallel: save its .module." if prefixed else ""
        raise ValueError(f"Weights {str(path)!r}: they must be those of {whose}, but {'; '.join(wrong)}.{hint}")
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"Weights {str(path)!r}: they must be finite numbers, but those of {_some(broken)} are not.")
    module.load_state_dict(weights, strict=False)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises
    ------
    ValueError
        For a file that is missing, a pickle, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"Weights {str(path)!r}: the file must be readable: {error.strerror}.") from None
    try:
        return load(content)
    except SafetensorError as error:
        named = path.suffix.lower() in PICKLES
        if named or zipfile.is_zipfile(path) or content[:1] == pickle.PROTO:  # these may come in a safetensors file too
            raise ValueError(
                f"Weights {str(path)!r}: they must be a safetensors file, but this is a pickle, which can run any code "
                'as it is read, so it is not. Convert it where you trust it: python -c "import torch; from '
                "safetensors.torch import save_file; w = torch.load('IN', weights_only=True); "
                "save_file(w.get('state_dict', w), 'OUT.safetensors')\"."
            ) from None
        raise ValueError(
            f"Weights {str(path)!r}: they must be a safetensors file, but it is damaged: {error}."
        ) from None


def _some(names: list[str]) -> str:
    rest = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
