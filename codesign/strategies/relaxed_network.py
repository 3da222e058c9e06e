"""A network whose layers run at mixtures of bitwidths, with gradients by the shares of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from codesign.quant.convert import quantized_layers, set_bits
from codesign.quant.quantizers import mixed_quantize
from codesign.space import BitwidthSpace
from codesign.strategies.relaxed_bits import Relaxation, group_of


class Mixture(NamedTuple):
    """Bitwidths that an operand of a layer runs at together."""

    bits: tuple[int, ...]
    shares: Tensor  #: shape (n_bits,), or (n_groups, n_bits) for groups of output channels of a weight


def mixed(x: Tensor, quantizers: nn.ModuleDict, mixture: Mixture) -> Tensor:
    """The sum over bitwidths of their share times what their quantizer makes of a tensor.

    A bitwidth whose share is 0 is left out, but where the gradient of that share is asked for.
    """
    shares, index = mixture.shares, list(range(len(mixture.bits)))
    if not shares.requires_grad:
        index = [i for i in index if bool(shares[..., i].any())]
    used: list[Any] = [quantizers[str(mixture.bits[i])] for i in index]
    shares = shares[..., index].to(x.device, torch.promote_types(x.dtype, torch.float32))
    if shares.dim() == 1:
        return mixed_quantize(x, used, shares)
    groups = torch.from_numpy(group_of(len(x), len(shares))).to(x.device)
    rows = shares[groups].view(len(x), -1, *(1,) * (x.dim() - 1))
    return torch.stack([rows[:, i] * quantizer(x) for i, quantizer in enumerate(used)]).sum(dim=0)


class RelaxedNetwork(nn.Module):
    """A network whose searched layers run at mixtures of bitwidths; pinned ones run at their bits, or in float.

    Parameters
    ----------
    network : nn.Module
        As a `NetworkTask` has it. It is kept and set to float where it is searched; its code is run as it is, with
        weights that are mixtures.
    space : BitwidthSpace
    """

    quantized = True

    def __init__(self, network: nn.Module, space: BitwidthSpace) -> None:
        super().__init__()
        self.network, self.space = network, space
        floats = {name for name in space.pinned if name not in dict(quantized_layers(network))}
        for bits in space.bits:  # raises for layers and bitwidths that are not there
            pairs = space.layer_bits(space.uniform(bits)).items()
            set_bits(network, {name: pair for name, pair in pairs if name not in floats})
        self._layers = {name: layer for name, layer in quantized_layers(network) if name in space.searched}
        for layer in self._layers.values():
            layer.weight_bits = None
            layer.input_bits = layer.input_bits if space.input_bits else None

    def forward(self, images: Tensor, mixtures: Sequence[Mixture], keep_statistics: bool = True) -> Tensor:
        """Scores at mixtures, one for each choice of the space.

        Parameters
        ----------
        images : Tensor
        mixtures : sequence of Mixture
        keep_statistics : bool
            Whether running statistics follow the batch in training mode.
        """
        slots = [(name, operand) for name in self.space.searched for operand in self.space.operands]
        tensors: dict[str, Tensor] = (
            {} if keep_statistics else {name: b.clone() for name, b in self.network.named_buffers()}
        )
        hooks = []
        try:
            for (name, operand), mixture in zip(slots, mixtures, strict=True):
                layer = self._layers[name]
                if operand == "weight":
                    tensors[f"{name}.weight"] = mixed(layer.weight, layer.weight_quantizers, mixture)
                else:
                    hooks.append(layer.register_forward_pre_hook(partial(_mix_input, mixture)))
            scores: Tensor = functional_call(self.network, tensors, (images,))
            return scores
        finally:
            for hook in hooks:
                hook.remove()

    def input_steps(self) -> Iterator[nn.Parameter]:
        """Steps of quantizers of inputs that are learned."""
        for _, layer in quantized_layers(self.network):
            yield from layer.input_quantizers.parameters()

    def use_quantizers(self, on: bool) -> None:
        """Nothing to switch: this network always has them."""
        assert on, "a relaxed network has quantizers"


def _mix_input(mixture: Mixture, layer: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (mixed(args[0], layer.input_quantizers, mixture), *args[1:])


def mixtures_of(space: BitwidthSpace, relaxation: Relaxation) -> list[Mixture]:
    """The mixtures of a relaxation, each of the options that take part; those of inputs have one group."""
    mixtures = []
    for choice, shares, takes_part in zip(space.choices, *relaxation, strict=True):
        options = takes_part.nonzero().flatten().tolist()
        if shares.dim() == 2 and (len(shares) == 1 or choice.name.endswith(".input_bits")):
            shares = shares[0]
        mixtures.append(Mixture(tuple(space.bits[i] for i in options), shares[..., options]))
    return mixtures
