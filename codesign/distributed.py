"""Several processes as one: gradients and batch moments over all of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional


def world_size() -> int:
    """Number of processes that train together; 1 where none were started."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def share(batch: Tensor) -> Tensor:
    """The rows of a batch that this process computes; rows of equal number for each."""
    n = world_size()
    if len(batch) % n:
        raise ValueError(
            f"distributed: a batch must split evenly over the processes, got {len(batch)} images and {n} processes; "
            "choose another batch size."
        )
    return batch.chunk(n)[rank()]


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their means over all processes, in place."""
    if world_size() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor.div_(world_size())


class _SumOverProcesses(torch.autograd.Function):
    """The sum over all processes; its gradient is summed over them too."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


def batch_moments(
    x: Tensor, weight: Tensor, bias: Tensor, kept: nn.BatchNorm2d | None, share: float, eps: float
) -> Tensor:
    r"""BatchNorm by the moments of the batch, which is the whole one of all processes.

    Parameters
    ----------
    x : Tensor, shape (n, channels, height, width)
    weight, bias : Tensor, shape (channels,)
    kept : nn.BatchNorm2d, optional
        Whose running statistics take a ``share`` of the moments.
    share, eps : float

    Notes
    -----
    Each process has as many rows, so the moments of the whole are the means of those of the parts:
    :math:`\mu = E[x]`, :math:`\sigma^2 = E[x^2] - \mu^2`. torch's SyncBatchNorm does the same, but on CUDA alone.
    """
    mean, variance = (kept.running_mean, kept.running_var) if kept is not None else (None, None)
    if world_size() == 1:
        return functional.batch_norm(x, mean, variance, weight, bias, True, share, eps)
    moments = torch.stack([x.mean(dim=(0, 2, 3)), x.square().mean(dim=(0, 2, 3))]).float()
    mu, square = _SumOverProcesses.apply(moments) / world_size()
    sigma2 = square - mu.square()
    if mean is not None and variance is not None:
        n = x.numel() // x.shape[1] * world_size()
        with torch.no_grad():
            mean.lerp_(mu, share)
            variance.lerp_(sigma2 * n / max(1, n - 1), share)
    scale = weight * torch.rsqrt(sigma2 + eps)
    return x * scale[:, None, None] + (bias - mu * scale)[:, None, None]
