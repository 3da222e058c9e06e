"""Several processes as one: batches shared, gradients and batch moments over all of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from codesign.precision import wide
from codesign.processes import rank, world_size


def share(batch: Tensor) -> Tensor:
    """The rows of a batch that this process computes; rows of equal number for each.

    Raises
    ------
    ValueError
        Where the rows cannot be shared evenly.
    """
    n = world_size()
    if len(batch) % n:
        raise ValueError(
            f"distributed: a batch must split evenly over the processes, got {len(batch)} images and {n} processes; "
            "choose another batch size."
        )
    return batch.chunk(n)[rank()] if n > 1 else batch


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


def gathered(x: Tensor) -> Tensor:
    """A tensor of every process, in the order of their ranks; shape (world_size, *x.shape)."""
    places = [torch.zeros_like(x)] * world_size()
    places[rank()] = x
    return _SumOverProcesses.apply(torch.stack(places))  # type: ignore[no-any-return]


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
    Each process has as many rows, so with the moments :math:`\mu_r, \sigma_r^2` of the parts those of the whole are
    :math:`\mu = \overline{\mu_r}` and :math:`\sigma^2 = \overline{\sigma_r^2} + \overline{(\mu_r - \mu)^2}`, in which
    nothing large cancels. torch's SyncBatchNorm does the same, but on CUDA alone.
    """
    mean, variance = (kept.running_mean, kept.running_var) if kept is not None else (None, None)
    if world_size() == 1:
        return functional.batch_norm(x, mean, variance, weight, bias, True, share, eps)
    variances, means = gathered(torch.stack(torch.var_mean(wide(x), dim=(0, 2, 3), correction=0))).unbind(1)
    mu = means.mean(0)
    sigma2 = variances.mean(0) + (means - mu).square().mean(0)
    if mean is not None and variance is not None:
        n = x.numel() // x.shape[1] * world_size()
        with torch.no_grad():
            mean.lerp_(mu, share)
            variance.lerp_(sigma2 * n / max(1, n - 1), share)
    scale = weight * torch.rsqrt(sigma2 + eps)
    return (wide(x) * scale[:, None, None] + (bias - mu * scale)[:, None, None]).to(x.dtype)
