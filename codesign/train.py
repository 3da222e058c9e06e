"""Training by gradient descent, in float or with quantizers in the loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from codesign.data import Images
from codesign.quant.convert import Bits, mode, set_bits


def shift(images: Tensor, rng: np.random.Generator) -> Tensor:
    """The images moved by up to one pixel along each axis, all alike, with zeros moved in."""
    height, width = images.shape[-2:]
    top, left = rng.integers(0, 3, size=2)
    return functional.pad(images, (1, 1, 1, 1))[..., top : top + height, left : left + width]


def train(
    network: nn.Module,
    data: Images,
    epochs: int,
    learning_rate: float,
    seed: int,
    batch_size: int = 128,
    weight_decay: float = 0.01,
    bits: Callable[[np.random.Generator], Bits] | None = None,
    augment: Callable[[Tensor, np.random.Generator], Tensor] = shift,
    progress: Callable[[], object] | None = None,
) -> None:
    """Minimise the cross entropy, in place.

    Parameters
    ----------
    network : nn.Module
    data : Images
    epochs : int
        Passes over the data; what is left of the last batch of each is dropped.
    learning_rate : float
        Its peak, reached after a third of the steps and left on a cosine.
    seed : int
        Of the order of the images, the augmentation, and the bits.
    bits : callable, optional
        For a quantized and calibrated network the bits to train at, drawn anew for each step.
    augment : callable
        From a batch and a generator to a batch.
    progress : callable, optional
        Called after each epoch.

    Raises
    ------
    FloatingPointError
        Where the loss is not a number.

    References
    ----------
    Optimiser: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019. Schedule: Smith and Topin,
    arXiv:1708.07120. Gradients through rounding: `codesign.quant.fake_quantize`.
    """
    rng = np.random.default_rng(seed)
    n_batches = max(1, len(data.labels) // batch_size)
    matrices = [p for p in network.parameters() if p.ndim > 1]
    scalars = [p for p in network.parameters() if p.ndim <= 1]  # norms, biases and quantization steps do not decay
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": scalars, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=max(1, epochs * n_batches), pct_start=1 / 3
    )
    for epoch in range(epochs):
        order = torch.from_numpy(rng.permutation(len(data.labels)))
        with mode(network, training=True):
            for batch in order[: n_batches * batch_size].split(batch_size):
                if bits is not None:
                    set_bits(network, bits(rng))
                loss = functional.cross_entropy(network(augment(data.images[batch], rng)), data.labels[batch])
                if not torch.isfinite(loss):
                    raise FloatingPointError(
                        f"train: the loss must stay finite, but is {loss.item()} in epoch {epoch}."
                    )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        if progress:
            progress()
