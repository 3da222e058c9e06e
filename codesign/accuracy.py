"""How good a network is on a set of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from codesign.data import Images
from codesign.quant.convert import mode


@torch.no_grad()
def evaluate(network: nn.Module, data: Images, batch_size: int = 500) -> dict[str, float]:
    """``error``, the share of images that are misclassified, and ``loss``, the mean cross entropy in nats.

    Parameters
    ----------
    network : nn.Module
        On any device; batches follow it there.
    data : Images
    batch_size : int
        Images at once. In memory they are kept pixel by pixel, which convolutions of several channels are faster on.
    """
    return summary(scores_of(network, data, batch_size), data.labels)


@torch.no_grad()
def scores_of(network: nn.Module, data: Images, batch_size: int = 500) -> Tensor:
    """What a network gives for each image, computed in batches; shape (n, classes)."""
    device = device_of(network)
    with mode(network, training=False):
        return torch.cat([network(pixel_by_pixel(batch.to(device))) for batch in data.images.split(batch_size)])


def summary(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """``error`` and ``loss`` of scores, as `evaluate` gives them."""
    labels = labels.to(scores.device)
    wrong = (scores.argmax(dim=1) != labels).double().mean()
    return {"error": wrong.item(), "loss": functional.cross_entropy(scores.double(), labels).item()}


def pixel_by_pixel(batch: Tensor) -> Tensor:
    """Images with their channels last in memory, which convolutions of several channels are faster on."""
    return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch


def place_of(device: str | None) -> torch.device:
    """Where to compute: a device by its name, or without one a GPU where there is one.

    Raises
    ------
    ValueError
        For a name that is none, or a device that is not there.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=place)
        return torch.device(place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(
            f"Device {place!r}: it must be one that torch has here, such as cpu or cuda, but {said}. Name another, or "
            "leave it out."
        ) from None


def device_of(network: nn.Module) -> torch.device:
    """Where a network's parameters are; the CPU for one without."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))
