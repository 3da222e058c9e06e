"""Training by gradient descent, in float or with quantizers in the loop."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from codesign.accuracy import device_of
from codesign.augment import Augment, crop_and_flip
from codesign.checkpoint import Checkpoint
from codesign.data import Images
from codesign.describe import describe, digest
from codesign.precision import Precision
from codesign.quant.convert import Bits, mode, set_bits
from codesign.quant.pact import PACT, clip_penalty
from codesign.state_file import State


def shift(images: Tensor, rng: np.random.Generator) -> Tensor:
    """The images moved by up to one pixel along each axis, all alike, with zeros moved in."""
    height, width = images.shape[-2:]
    top, left = rng.integers(0, 3, size=2)
    return functional.pad(images, (1, 1, 1, 1))[..., top : top + height, left : left + width]


def unchanged(images: Tensor, rng: np.random.Generator) -> Tensor:
    """The images as they are."""
    return images


AUGMENT: dict[str, Augment] = {"shift": shift, "crop-flip": crop_and_flip, "none": unchanged}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, but for how long and how fast.

    Parameters
    ----------
    optimizer : {"adamw", "sgd"}
        SGD has Nesterov's momentum.
    schedule : {"one-cycle", "cosine"}
        One cycle: the learning rate reaches its peak after a third of the steps and falls on a cosine. Cosine: it
        rises in proportion over the first ``warmup`` of the steps and falls to 0 on a cosine.
    batch_size : int
    weight_decay : float
        Of weights that are matrices or kernels; norms, biases and quantization steps do not decay.
    clip_decay : float, optional
        Of the clips of `PACT`, an L2 penalty of their own. None: as large as ``weight_decay``.
    step_rate : float
        Share of the learning rate at which the steps of quantizers are learned.
    momentum : float
        Of SGD.
    warmup : float
        Share of all steps.
    label_smoothing : float
        Share of the probability that is spread over all classes alike.
    clip_norm : float, optional
        Largest norm of the gradient.
    augment : {"shift", "crop-flip", "none"}
        For digits all images of a batch moved by up to a pixel; for pictures each moved by up to four and half of
        them mirrored.
    statistics : {"batch", "kept"}
        What BatchNorm normalises by while it is trained: the moments of each batch, which its own statistics follow, or
        these as they are, for a trained network that is tuned shortly.
    precision : Precision
    channels_last : bool
        Keep images in memory pixel by pixel, which convolutions of several channels are faster on.

    Raises
    ------
    ValueError
        For an unknown name or a number out of range.

    References
    ----------
    AdamW: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019. One cycle: Smith and Topin,
    arXiv:1708.07120. Cosine: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5. Label smoothing: Szegedy et al.,
    "Rethinking the Inception architecture", CVPR 2016, section 7.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["one-cycle", "cosine"] = "one-cycle"
    batch_size: int = 128
    weight_decay: float = 0.01
    step_rate: float = 1.0
    momentum: float = 0.9
    warmup: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    augment: Literal["shift", "crop-flip", "none"] = "shift"
    statistics: Literal["batch", "kept"] = "batch"
    precision: Precision = field(default_factory=Precision)
    channels_last: bool = False
    clip_decay: float | None = None

    def __post_init__(self) -> None:
        known = {"optimizer": ("adamw", "sgd"), "schedule": ("one-cycle", "cosine"), "augment": tuple(AUGMENT),
                 "statistics": ("batch", "kept")}  # fmt: skip
        for name, names in known.items():
            if getattr(self, name) not in names:
                raise ValueError(f"Recipe: {name} must be one of {', '.join(names)}, got {getattr(self, name)!r}.")
        if self.batch_size < 1:
            raise ValueError(f"Recipe: batch_size must be at least 1, got {self.batch_size}.")
        for name in ("momentum", "warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"Recipe: {name} must be from 0 to below 1, got {getattr(self, name)}.")
        if not self.weight_decay >= 0:
            raise ValueError(f"Recipe: weight_decay must not be negative, got {self.weight_decay}.")
        if self.clip_decay is not None and not self.clip_decay >= 0:
            raise ValueError(f"Recipe: clip_decay must not be negative, got {self.clip_decay}.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"Recipe: clip_norm must be positive, got {self.clip_norm}.")


#: For pictures of 32 x 32 pixels in three channels, as for CIFAR in He et al., "Deep residual learning", CVPR 2016,
#: section 4.2, with the later additions of a cosine, a warm-up and a clipped gradient.
PICTURES = Recipe(
    "sgd",
    "cosine",
    weight_decay=1e-4,
    step_rate=0.1,
    warmup=0.1,
    clip_norm=5.0,
    augment="crop-flip",
    channels_last=True,
)


def train(
    network: nn.Module,
    data: Images,
    epochs: int,
    learning_rate: float,
    seed: int,
    recipe: Recipe = Recipe(),
    bits: Callable[[np.random.Generator], Bits] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Callable[[], object] | None = None,
    metrics: Callable[[Mapping[str, float]], object] | None = None,
) -> list[dict[str, float]]:
    """Minimise the cross entropy, in place.

    Parameters
    ----------
    network : nn.Module
        On any device; batches follow it there. Where it gives several outputs, as those with auxiliary heads do while
        they are trained, the first one counts.
    data : Images
    epochs : int
        Passes over the data; what is left of the last batch of each is dropped.
    learning_rate : float
        Its peak.
    seed : int
        Of the order of the images, the augmentation, and the bits.
    recipe : Recipe
    bits : callable, optional
        For a quantized and calibrated network the bits to train at, drawn anew for each step.
    checkpoint : path-like, optional
        File for the state after each epoch. Where it holds one of the same training, that is gone on with: killed at
        any time and begun again, a training on a CPU ends, at the same number of threads, in the same weights.
    progress : callable, optional
        Called after each epoch, those that were done before too.
    metrics : callable, optional
        Called like ``progress``, with the metrics of the epoch.

    Returns
    -------
    list of dict
        For each epoch ``epoch`` (from 0), ``loss`` (mean over its steps, in nats), ``learning_rate`` (at its end),
        ``skipped_steps`` (so far) and ``train_s`` (wall time).

    Raises
    ------
    FloatingPointError
        Where the loss, the gradients or the weights are not finite. The network then has its weights from the end of
        the last good epoch.
    RunDirectoryError
        Where ``checkpoint`` holds the state of another training.
    """
    if epochs < 0 or not 0 < learning_rate < math.inf:
        raise ValueError(
            f"train: epochs must not be negative and learning_rate must be positive, got {epochs} and {learning_rate}."
        )
    kept = None
    if checkpoint is not None:
        start = digest(*(tensor.cpu() for tensor in network.state_dict().values()))
        config = {
            "network": start, "data": digest(data.images.cpu(), data.labels.cpu()), "epochs": epochs,
            "learning_rate": float(learning_rate), "seed": int(seed), "recipe": describe(recipe),
            "bits": describe(bits),
        }  # fmt: skip
        kept = Checkpoint(checkpoint, config)
    trainer = _Trainer(network, data, epochs, float(learning_rate), seed, recipe, bits)
    state = kept.read() if kept else None
    if state is not None:
        trainer.load(state)

    def report(done: dict[str, float]) -> None:
        if progress:
            progress()
        if metrics:
            metrics(done)

    for done in trainer.history:
        report(done)
    good = trainer.state()
    while len(trainer.history) < epochs:
        try:
            trainer.run_epoch()
        except FloatingPointError:
            trainer.load(good)
            raise
        good = trainer.state()
        if kept:
            kept.write(good)
        report(trainer.history[-1])
    return trainer.history


class _Trainer:
    """A training on its way; its state can be kept and given back."""

    def __init__(
        self, network: nn.Module, data: Images, epochs: int, learning_rate: float, seed: int, recipe: Recipe,
        bits: Callable[[np.random.Generator], Bits] | None,
    ) -> None:  # fmt: skip
        self.network, self.data, self.recipe, self.bits = network, data, recipe, bits
        self.device = device_of(network)
        self.rng = np.random.default_rng(seed)
        self.n_batches = max(1, len(data.labels) // recipe.batch_size)
        steps = [p for name, p in network.named_parameters() if name.endswith(".step")]
        chosen = {id(p) for p in steps}
        others = [p for p in network.parameters() if id(p) not in chosen]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},  # norms and biases
        ]
        if steps:
            groups.append({"params": steps, "weight_decay": 0.0, "lr": learning_rate * recipe.step_rate})
        self.optimizer = _optimizer(recipe, groups, learning_rate)
        self.schedule = _schedule(recipe, self.optimizer, max(1, epochs * self.n_batches))
        self.scaler = recipe.precision.scaler()
        has_clips = any(isinstance(module, PACT) for module in network.modules())
        self.clip_decay = (recipe.weight_decay if recipe.clip_decay is None else recipe.clip_decay) * has_clips
        self.history: list[dict[str, float]] = []
        #: Not among them are the steps of quantizers that are out of use and were never calibrated.
        self.finite = {name for name, tensor in network.state_dict().items() if _is_finite(tensor)}

    def run_epoch(self) -> None:
        """One pass over the data, and its metrics at the end of `history`."""
        begun, losses = time.perf_counter(), []
        size = self.recipe.batch_size
        order = torch.from_numpy(self.rng.permutation(len(self.data.labels)))
        with mode(self.network, training=True):
            if self.recipe.statistics == "kept":
                for module in self.network.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
            for batch in order[: self.n_batches * size].split(size):
                losses.append(self._step(batch, len(losses)))
        bad = [
            name for name, tensor in self.network.state_dict().items() if name in self.finite and not _is_finite(tensor)
        ]
        if bad:
            raise self._stopped("the weights", f"not in {bad[0]} and {len(bad) - 1} more", self.n_batches - 1)
        self.history.append({
            "epoch": len(self.history), "loss": math.fsum(losses) / len(losses),
            "learning_rate": self.schedule.get_last_lr()[0], "skipped_steps": self.scaler.skipped_steps,
            "train_s": time.perf_counter() - begun,
        })  # fmt: skip

    def _step(self, batch: Tensor, number: int) -> float:
        drawn = None
        if self.bits is not None:
            drawn = self.bits(self.rng)
            set_bits(self.network, drawn)
        images = AUGMENT[self.recipe.augment](self.data.images[batch], self.rng).to(self.device)
        if self.recipe.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self.recipe.precision.autocast(self.device):
            scores = self.network(images)
        if not isinstance(scores, Tensor):  # auxiliary heads follow
            scores = scores[0]
        labels = self.data.labels[batch].to(self.device)
        loss = functional.cross_entropy(scores.float(), labels, label_smoothing=self.recipe.label_smoothing)
        value = loss.item()
        if not math.isfinite(value) and not self.scaler.skips:
            raise self._stopped("the loss", f"is {value}", number, drawn)
        if self.clip_decay:
            loss = loss + 0.5 * self.clip_decay * clip_penalty(self.network).to(loss.device)
        self.optimizer.zero_grad()
        self.scaler.backward(loss)
        try:
            if self.scaler.step(self.optimizer, self.recipe.clip_norm):
                self.schedule.step()
        except FloatingPointError as error:
            raise self._stopped("gradients", str(error), number, drawn) from None
        return value

    def _stopped(self, what: str, found: str, number: int, drawn: Any = None) -> FloatingPointError:
        at = f"learning rate {self.schedule.get_last_lr()[0]:.3g}, {self.recipe.precision.dtype}"
        at += f", bits {drawn}" if drawn is not None else ""
        epoch = len(self.history)
        last = f"from the end of epoch {epoch - 1}" if epoch else "that it began with"
        return FloatingPointError(
            f"train: {what} must stay finite, but {found} in epoch {epoch}, step {number} of {self.n_batches} ({at}). "
            f"The network has the weights {last}; lower the learning rate, or clip the gradient."
        )

    def state(self) -> State:
        """Everything that later steps depend on: arrays and plain values."""
        arrays = {f"network.{name}": _array(tensor) for name, tensor in self.network.state_dict().items()}
        optimizer = self.optimizer.state_dict()
        for i, values in optimizer["state"].items():
            arrays |= {f"optimizer.{i}.{name}": _array(tensor) for name, tensor in values.items()}
        schedule = {name: self.schedule.state_dict()[name] for name in ("last_epoch", "_step_count")}
        return {
            **arrays,
            "torch": torch.get_rng_state().numpy().copy(),
            "rng": self.rng.bit_generator.state,
            "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer["param_groups"]],
            "schedule": schedule,
            "scaler": self.scaler.state(),
            "history": list(self.history),
        }

    def load(self, state: State) -> None:
        """Go on from a state."""
        tensors = self.network.state_dict()
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(torch.from_numpy(state[f"network.{name}"]).reshape(tensor.shape))
        optimizer = self.optimizer.state_dict()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        kept: dict[int, dict[str, Tensor]] = {}
        for name in (name for name in state if name.startswith("optimizer.")):
            _, i, key = name.split(".", 2)
            shape = () if key == "step" else parameters[int(i)].shape
            kept.setdefault(int(i), {})[key] = torch.from_numpy(state[name].copy()).reshape(shape)
        groups = [{**group, **values} for group, values in zip(optimizer["param_groups"], state["groups"], strict=True)]
        self.optimizer.load_state_dict({"state": kept, "param_groups": groups})
        self.schedule.load_state_dict({**self.schedule.state_dict(), **state["schedule"]})
        self.schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        torch.set_rng_state(torch.from_numpy(state["torch"].copy()))
        self.rng.bit_generator.state = state["rng"]
        self.scaler.load(state["scaler"])
        self.history = list(state["history"])


def _optimizer(recipe: Recipe, groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
    return torch.optim.SGD(groups, lr=learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def _schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, n_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "one-cycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, peaks, total_steps=n_steps, pct_start=1 / 3, cycle_momentum=recipe.optimizer == "adamw"
        )
    n_warm = round(recipe.warmup * n_steps)

    def share(step: int) -> float:
        if step < n_warm:
            return (step + 1) / n_warm
        return 0.5 * (1 + math.cos(math.pi * (step - n_warm) / max(1, n_steps - n_warm)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
