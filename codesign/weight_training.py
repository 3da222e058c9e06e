"""Training of weights that candidates share, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from codesign import distributed
from codesign.augment import augmentation
from codesign.data import Images
from codesign.precision import Precision, wide
from codesign.quant.convert import mode
from codesign.run_directory import State
from codesign.sampling import SAMPLING
from codesign.space import AbstractSpace, Arch


@dataclass(frozen=True)
class SupernetTraining:
    """How shared weights are trained.

    Parameters
    ----------
    float_epochs : int
        Epochs in float, before the quantizers are calibrated.
    epochs : int
        Epochs with quantizers.
    release : float
        Share of the epochs in float over which shapes are released, and of those with quantizers over which bitwidths
        are. Training begins with the largest network and the widest bits; the probability that a field is drawn rises
        from 0 to 1, so that small networks, those without skips and those of few bits find weights that work.
    batch_size : int
        Images of a step; over all processes together.
    learning_rate : float
        Its peak; it rises over the first ``warmup`` of the steps and falls to 0 on a cosine.
    step_rate : float
        Share of it at which the steps of quantizers are learned. At the whole of a rate that suits weights, those of 8
        bits drift to many times what they were calibrated to.
    warmup : float
    momentum, weight_decay : float
        Of SGD with Nesterov's momentum; norms, biases and quantization steps do not decay.
    sampling : {"uniform", "coherent", "sandwich", "fair"}
        The candidates of a step: one drawn uniformly; or one whose blocks resemble each other, as those of good
        networks do; or the largest, the smallest and two drawn uniformly; or as many as the field with most values
        has, among which each value of a field is equally frequent. Gradients of several are averaged.
    largest : float
        For ``coherent``, the probability that all fields of a kind keep their largest value also when they are
        released. So large networks, and those with skips, are trained as far beside small ones as they would be alone.
    clip_norm : float
        Largest norm of the gradient.
    precision : Precision
        What scores are computed in; a step whose gradient overflows is skipped.
    checkpoint_steps : int
        Steps between two checkpoints.

    Raises
    ------
    ValueError
        For numbers out of range or an unknown sampling.

    References
    ----------
    Sandwich rule: Yu and Huang, "Universally slimmable networks", ICCV 2019, section 3.2. Fair sampling: Chu et al.,
    "FairNAS", ICCV 2021, section 3.2. Uniform: Guo et al., "Single path one-shot NAS", ECCV 2020. From large to small:
    Cai et al., "Once-for-all", ICLR 2020, section 3.3.
    """

    float_epochs: int = 2
    epochs: int = 8
    release: float = 0.75
    batch_size: int = 64
    learning_rate: float = 0.1
    step_rate: float = 0.1
    warmup: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    sampling: Literal["uniform", "coherent", "sandwich", "fair"] = "coherent"
    largest: float = 0.5
    clip_norm: float = 1.0
    precision: Precision = field(default_factory=Precision)
    checkpoint_steps: int = 200

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLING:
            raise ValueError(f"SupernetTraining: sampling must be one of {', '.join(SAMPLING)}, got {self.sampling!r}.")
        for name in ("epochs", "batch_size", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"SupernetTraining: {name} must be at least 1, got {getattr(self, name)}.")
        if self.float_epochs < 0 or not self.learning_rate > 0:
            raise ValueError(
                "SupernetTraining: float_epochs must not be negative and learning_rate must be positive, got "
                f"{self.float_epochs} and {self.learning_rate}."
            )
        if not 0 <= self.largest < 1:
            raise ValueError(f"SupernetTraining: largest must be at least 0 and below 1, got {self.largest}.")

    def freedom(self, space: AbstractSpace, progress: float) -> NDArray[np.float64]:
        """Probability that each field is drawn, when a share ``progress`` of all steps is done."""
        share = self.float_epochs / (self.float_epochs + self.epochs)
        release = max(self.release, 1e-9)
        shapes = progress / (share * release) if share else 1.0
        bits = (progress - share) / ((1 - share) * release)
        are_bits = np.array([name.endswith("_bits") for name in space.field_names])
        most = 1.0 - self.largest if self.sampling == "coherent" else 1.0
        return most * np.clip(np.where(are_bits, bits, shapes), 0.0, 1.0)


class Stopped(FloatingPointError):
    """Training whose loss is no longer a number."""


class WeightTrainer:
    """Shared weights on their way: a network, its optimiser and how far it is. Its state can be kept and given back.

    Parameters
    ----------
    network : nn.Module
        Trained in place. Its ``forward(images, arch)`` gives scores.
    data : Images
    training : SupernetTraining
    n_steps : int
        Over which the learning rate runs its course.
    seed : int
        Of the order of the images and of their augmentation, which depend on the number of the step alone.
    """

    def __init__(self, network: Any, data: Images, training: SupernetTraining, n_steps: int, seed: int) -> None:
        self.network, self.data, self.training, self.n_steps, self.seed = network, data, training, n_steps, seed
        self.step_number = 0
        self.batches_per_epoch = max(1, len(data.labels) // training.batch_size)
        kinds: dict[str, list[nn.Parameter]] = {"weight": [], "step": [], "other": []}
        for name, parameter in network.named_parameters():
            last = name.rpartition(".")[2]
            kinds[last if last in kinds else "other"].append(parameter)
        groups = [
            {"params": kinds["weight"], "weight_decay": training.weight_decay, "rate": 1.0},
            {"params": kinds["step"], "weight_decay": 0.0, "rate": training.step_rate},
            {"params": kinds["other"], "weight_decay": 0.0, "rate": 1.0},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=0.0, momentum=training.momentum, nesterov=True)
        self.scaler = training.precision.scaler()
        self.may_overflow = self.scaler.skips
        # The gradient of a random network of few bits can overflow where a layer's outputs are all equal: that step is
        # left out, and only many in a row end the training.
        self.scaler.skips = True
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))
        parallel = distributed.world_size() > 1
        self._forward = (
            DistributedDataParallel(network, find_unused_parameters=True, broadcast_buffers=False)
            if parallel
            else network
        )

    def rng(self, *purpose: int) -> np.random.Generator:
        """A generator for this step, the same in all processes."""
        return np.random.default_rng([self.seed, self.step_number, *purpose])

    def batch(self) -> Images:
        """The images of this step that this process computes, augmented."""
        epoch, place = divmod(self.step_number, self.batches_per_epoch)
        if self._order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch, 1]).permutation(len(self.data.labels))
            self._order = epoch, torch.from_numpy(order)
        size = self.training.batch_size
        index = self._order[1][place * size : (place + 1) * size]
        images = augmentation(self.data.images)(self.data.images[index], self.rng(2))
        return Images(distributed.share(images), distributed.share(self.data.labels[index]))

    def step(self, archs: Sequence[Arch]) -> float:
        """Move the weights along the mean gradient of candidates on the next batch; their mean loss.

        Raises
        ------
        Stopped
            Where a loss is not finite, or gradients are not, many times in a row; the weights are those before the
            step. A single such gradient is left out.
        """
        rate = self.training.learning_rate * self._schedule()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        images, labels = self.batch()
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        with mode(self.network, training=True):
            for arch in archs:
                with self.training.precision.autocast(images.device):
                    scores = self._forward(images, arch)
                loss = functional.cross_entropy(wide(scores), labels)
                value = loss.detach().clone()
                distributed.average([value])
                if not self.may_overflow:
                    self._check("loss", value.item(), [arch])
                self.scaler.backward(loss / len(archs))
                total += value.item() / len(archs)
        n = distributed.world_size()
        if n > 1:  # the gradient of a step is scaled by the number of values, of which each process has its share
            for step in self.network.input_steps():
                if step.grad is not None:
                    step.grad.div_(math.sqrt(n))
        try:
            self.scaler.step(self.optimizer, self.training.clip_norm)
        except FloatingPointError as error:
            raise self._stopped(str(error), archs) from None
        self.step_number += 1
        return total

    def _check(self, what: str, value: float, archs: Sequence[Arch]) -> None:
        if not math.isfinite(value):
            raise self._stopped(f"the {what} must be finite, but is {value}", archs)

    def _stopped(self, what: str, archs: Sequence[Arch]) -> Stopped:
        return Stopped(
            f"Supernet: {what} at step {self.step_number} for "
            f"{' and '.join(_names(self.network.space, arch) for arch in archs)}. What was kept before stays; begin "
            "another run with a lower learning rate."
        )

    def _schedule(self) -> float:
        """Linear warm-up, then a cosine to 0."""
        progress = min(1.0, self.step_number / max(1, self.n_steps))
        if progress < self.training.warmup:
            return (progress + 1 / max(1, self.n_steps)) / (self.training.warmup + 1 / max(1, self.n_steps))
        return 0.5 * (1 + math.cos(math.pi * (progress - self.training.warmup) / (1 - self.training.warmup)))

    def state(self) -> State:
        """Everything that later steps depend on.

        Raises
        ------
        Stopped
            Where a parameter is not finite; a step may leave it so without the gradient being.
        """
        for name, parameter in self.network.named_parameters():
            fitted = self.network.quantized or not name.endswith(".step")
            if fitted and not bool(parameter.isfinite().all()):
                raise Stopped(
                    f"Supernet: parameters must stay finite, but {name} is not after {self.step_number} steps. What "
                    "was kept before stays; begin another run with a lower learning rate."
                )
        arrays = {f"weight.{name}": tensor for name, tensor in self.network.state_dict().items()}
        by_parameter = self.optimizer.state
        for name, parameter in self.network.named_parameters():
            buffer = by_parameter.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                arrays[f"momentum.{name}"] = buffer
        kept = {name: tensor.detach().cpu().numpy().copy() for name, tensor in arrays.items()}
        return {**kept, "step_number": self.step_number, "quantized": bool(self.network.quantized),
                "scaler": self.scaler.state()}  # fmt: skip

    def load(self, state: State) -> None:
        """Go on from a state."""
        load_weights(self.network, {n[7:]: torch.from_numpy(v) for n, v in state.items() if n.startswith("weight.")})
        self.network.use_quantizers(bool(state["quantized"]))
        self.step_number = int(state["step_number"])
        self.scaler.load(state["scaler"])
        for name, parameter in self.network.named_parameters():
            kept = state.get(f"momentum.{name}")
            if kept is not None:
                buffer = torch.from_numpy(kept.copy()).to(parameter.device)
                self.optimizer.state[parameter] = {"momentum_buffer": buffer}


def _names(space: AbstractSpace, arch: Sequence[int]) -> str:
    return ", ".join(f"{name}={tuple(v) if isinstance(v, tuple) else v}" for name, v in space.decode(arch).items())


def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load a state dict.

    Raises
    ------
    ValueError
        Where names or shapes are not those of the network.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"Supernet: the weights must be those of this space: {error}") from None
