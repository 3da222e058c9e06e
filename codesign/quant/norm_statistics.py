"""Statistics of norms in a network whose bits change: matched with those it was trained with, replaced, unfolded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from codesign.quant.convert import in_float, mode

#: How statistics follow the bits: `match_batchnorm` or `recalibrate_batchnorm`.
Renewal = Literal["match", "renew"]

_NORMS, _BATCH_NORM = nn.modules.batchnorm._NormBase, nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class NormReference:
    """A norm of a trained network in float: its statistics, and the moments of its inputs on some images.

    Parameters
    ----------
    mean, variance : Tensor, shape (channels,)
        Those that the norm holds.
    input_mean, input_deviation : Tensor, shape (channels,)
        Of its inputs; the deviation is :math:`\\sqrt{variance + \\epsilon}`.
    """

    mean: Tensor
    variance: Tensor
    input_mean: Tensor
    input_deviation: Tensor

    def correct(self, norm: Any, mean: Tensor, deviation: Tensor) -> None:
        """Give the norm the statistics for inputs of other moments, in place (see `match_batchnorm`)."""
        ratio = deviation / self.input_deviation
        norm.running_mean.copy_(mean + ratio * (self.mean - self.input_mean))
        norm.running_var.copy_((ratio**2 * (self.variance + norm.eps) - norm.eps).clamp_min(0))


@torch.no_grad()
def norm_references(module: nn.Module, images: Tensor) -> dict[str, NormReference]:
    """The reference of each norm with statistics that runs, by name; layers are in float for that."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name, _ in _with_statistics(module)}

    def keep(name: str, norm: Any, x: Tensor) -> None:
        seen[name].append(moments(x, norm.eps))

    with in_float(module), _before_norms(module, keep):
        module(images)
    return {
        name: NormReference(norm.running_mean.clone(), norm.running_var.clone(), *_average_of(seen[name]))
        for name, norm in _with_statistics(module)
        if seen[name]
    }


@torch.no_grad()
def match_batchnorm(module: nn.Module, images: Tensor, references: Mapping[str, NormReference]) -> None:
    r"""Correct the statistics of every norm by what quantization changes in its inputs.

    .. math:: \mu' = m_q + s (\mu - m), \quad \sigma'^2 = s^2 \sigma^2, \quad s = \sigma_q / \sigma_m

    where :math:`\mu`, :math:`\sigma` are the statistics that the network was trained with, :math:`m`,
    :math:`\sigma_m` the moments of the norm's inputs in float and :math:`m_q`, :math:`\sigma_q` those at its bits on
    the same images; each :math:`\sigma^2` includes :math:`\epsilon`. Inputs of the norm so get back the mean and the
    deviation that they have in float, and what the trained statistics differ from those of a few plain images by stays
    as it is: where nothing is quantized, nothing changes. `recalibrate_batchnorm` instead replaces the statistics,
    which adds the noise of few images, and what training saw and these images do not show, such as augmentation.
    Nagel et al. ("Data-free quantization through weight equalization and bias correction", ICCV 2019) correct means,
    from data too, in the same spirit.

    Parameters
    ----------
    module : nn.Module
        At its bits. A norm that does not run keeps its statistics; one that runs several times takes the average of
        its calls so far.
    images : Tensor
        Not of the test set.
    references : mapping
        From `norm_references`, of the network with the weights and statistics that it was trained with, on the same
        images.
    """
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in references}

    def correct(name: str, norm: Any, x: Tensor) -> None:
        if name in seen:
            seen[name].append(moments(x, norm.eps))
            references[name].correct(norm, *_average_of(seen[name]))

    with _before_norms(module, correct):
        module(images)


def moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and deviation, :math:`\\sqrt{variance + \\epsilon}`, of each channel; shape (n, channels, ...)."""
    _, mean, inverse = torch.native_batch_norm(x, None, None, None, None, True, 0.0, eps)  # far faster than var_mean
    return mean, 1 / inverse


@contextmanager
def _before_norms(module: nn.Module, act: Callable[[str, Any, Tensor], None]) -> Iterator[None]:
    """Evaluation mode, in which something is done before each norm with statistics runs."""
    hooks = [
        norm.register_forward_pre_hook(lambda norm, args, name=name: act(name, norm, args[0]))
        for name, norm in _with_statistics(module)
    ]
    try:
        with mode(module, training=False):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _with_statistics(module: nn.Module) -> list[tuple[str, Any]]:
    return [
        (n, norm) for n, norm in module.named_modules() if isinstance(norm, _NORMS) and norm.running_mean is not None
    ]


def _average_of(calls: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    mean, deviation = (torch.stack(values).mean(dim=0) for values in zip(*calls, strict=True))
    return mean, deviation


@torch.no_grad()
def recalibrate_batchnorm(module: nn.Module, images: Tensor, batch_size: int = 0) -> None:
    """Replace the running statistics of every norm by those of the network as it is now.

    Parameters
    ----------
    module : nn.Module
        Norms with statistics are BatchNorm, on one process or several, and InstanceNorm that tracks them; others, such
        as LayerNorm, have none. A norm that does not run keeps its own.
    images : Tensor
        Not of the test set.
    batch_size : int
        0: all images at once. The statistics are the plain average over the batches.
    """
    norms = [norm for _, norm in _with_statistics(module)]
    before = [
        (norm.momentum, {name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)}) for norm in norms
    ]
    batches = images.split(batch_size or len(images))
    hooks = [norm.register_forward_pre_hook(_average) for norm in norms if not isinstance(norm, _BATCH_NORM)]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # BatchNorm's word for a cumulative average
        with mode(module, training=True):
            for batch in batches:
                module(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for norm, (momentum, buffers) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if not norm.num_batches_tracked:
                for name, buffer in buffers.items():
                    getattr(norm, name).copy_(buffer)


@torch.no_grad()
def unfold_batchnorm(module: nn.Module, images: Tensor, batch_size: int = 64) -> tuple[str, ...]:
    r"""Take BatchNorm that was folded into the layers before it out of them again, so that it can be renewed.

    A norm that was folded is left as the identity: means of 0, variances of one value. Renewing its statistics, or
    training with those of batches, would undo what was folded. Here it is given the statistics of images, and factors
    with which the function of the network stays as it is:

    .. math:: \gamma' = a \sqrt{v + \epsilon}, \quad \beta' = b + a m, \quad \text{where the norm was} \quad
              x \mapsto a x + b

    and :math:`m`, :math:`v` are mean and variance of its inputs. Where networks come with their norms folded, what
    renewed statistics mend of the errors of few bits is lost without it.

    Parameters
    ----------
    module : nn.Module
        In float. Norms that have statistics of their own are left alone, and those that have no factors, or do not run.
    images : Tensor
        Not of the test set.
    batch_size : int
        Images that run together.

    Returns
    -------
    tuple of str
        The norms that were taken out.
    """
    folded: dict[str, Any] = {name: norm for name, norm in module.named_modules() if _is_folded(norm)}
    sums: dict[str, list[Tensor]] = {name: [] for name in folded}

    def measure(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            found = torch.var_mean(args[0], [0, *range(2, args[0].dim())], correction=0)
            variance, mean = (value.double() for value in found)
            count = args[0].numel() / args[0].shape[1]
            sums[name].append(count * torch.stack([torch.ones_like(mean), mean, variance + mean**2]))

        return hook

    hooks = [norm.register_forward_pre_hook(measure(name)) for name, norm in folded.items()]
    try:
        with mode(module, training=False):
            for batch in images.split(batch_size) if folded else ():
                module(batch)
    finally:
        for handle in hooks:
            handle.remove()
    ran = tuple(name for name in folded if sums[name])
    for name in ran:
        norm = folded[name]
        count, mean, square = torch.stack(sums[name]).sum(dim=0)
        mean, variance = mean / count, (square / count - (mean / count) ** 2).clamp_min(0)
        a = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        norm.bias += a * (mean - norm.running_mean)
        norm.weight.copy_(a * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    return ran


def _is_folded(norm: nn.Module) -> bool:
    """Whether a module is a BatchNorm whose statistics say nothing."""
    if not isinstance(norm, _BATCH_NORM) or norm.running_mean is None or not norm.affine:
        return False
    return bool((norm.running_mean == 0).all() and (norm.running_var == norm.running_var[0]).all())


def _average(norm: nn.Module, _: object) -> None:
    """The momentum that averages this batch with those before; InstanceNorm does not count them itself."""
    norm.num_batches_tracked += 1
    norm.momentum = 1.0 / int(norm.num_batches_tracked)
