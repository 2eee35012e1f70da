"""Several processes on one step: each holds its part of the batch, and what compares within the batch is gathered.

In one process all of this is the identity, so a method is written once. With R processes the loop averages gradients
and losses over them, hence two kinds of losses give what one process with the whole batch gives:

- a mean over the images of the batch, of the process's own part, and
- any function of gathered rows: the whole batch in every process. `gather` hands the gradient back to where a row came
  from, so it may be followed by layers with parameters, and stand beside a mean in one sum.

Random numbers of a step are drawn for the whole batch, from one seed in all processes, and `part` takes what is theirs.
Batch normalisation sees the whole batch through `synchronise`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from bench.spec import BenchError


def ranks() -> int:
    """How many processes share a step."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0 on."""
    return dist.get_rank() if ranks() > 1 else 0


def own_rows(batch: int, multiple: int = 1) -> list[int]:
    """Places of this process's images in a batch, in their order.

    The batch falls into `multiple` stretches of one length, and every process has its share of each: what a method
    pairs between stretches (`MethodSpec.batch_multiple`) stays together.
    """
    stretch, share = batch // multiple, batch // multiple // ranks()
    first = rank() * share
    return [place * stretch + first + row for place in range(multiple) for row in range(share)]


def part(rows: Tensor) -> Tensor:
    """This process's share (B / R, ...) of rows (B, ...) that were made for the whole batch."""
    share = len(rows) // ranks()
    return rows[rank() * share : (rank() + 1) * share]


def gather(rows: Tensor) -> Tensor:
    """The rows (B / R, ...) of all processes, one after another: (B, ...), with their gradient."""
    if ranks() == 1:
        return rows
    whole: Tensor = _Gather.apply(rows)
    return whole


def average(values: Tensor) -> Tensor:
    """The mean of what the processes have, without gradient."""
    if ranks() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / ranks()


def _all(tensor: Tensor) -> Tensor:
    """(n, ...) of every process -> (R n, ...)."""
    parts = [torch.empty_like(tensor) for _ in range(ranks())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """All rows forwards; backwards the sum over the processes of what reaches the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _all(rows.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        total = upstream.contiguous().clone()
        dist.all_reduce(total)
        return part(total)


# ------------------------------------------------------------------------------------------------- batch normalisation


def synchronise(module: nn.Module) -> None:
    """Lets every batch normalisation inside `module` see the batch of all processes; names and values stay.

    BenchError where one is of a kind of its own, whose forward pass is not known here.
    """
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            setattr(module, name, SyncedBatchNorm(child))
        elif isinstance(child, _BatchNorm):
            raise BenchError(
                f"the network normalises with {type(child).__name__}, which cannot be shared by several devices: "
                "leave out --gpus-per-cell, or choose another --backbone"
            )
        else:
            synchronise(child)


class SyncedBatchNorm(_BatchNorm):
    """Batch normalisation over the batches of all processes: values (n, C, *S), of any process the same number or not.

    torch's own needs a GPU and takes no other backend than NCCL; this one gives the same on all.
    """

    def __init__(self, own: _BatchNorm) -> None:
        super().__init__(own.num_features, own.eps, own.momentum, affine=False, track_running_stats=False)
        self.affine, self.track_running_stats = own.affine, own.track_running_stats
        self.weight, self.bias = own.weight, own.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(own, name))
        self.train(own.training)

    def _check_input_dim(self, input: Tensor) -> None:
        return None

    def forward(self, input: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            normal, mean, variance, count = _Normalise.apply(input, self.eps)
            if self.training and self.running_mean is not None:
                self._follow(mean, variance * (count / (count - 1)))
            shape = (1, -1, *[1] * (input.dim() - 2))
            if self.weight is not None:
                normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        weight = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(variance, weight)


class _Normalise(torch.autograd.Function):
    """Values at mean 0 and variance 1 per channel over all processes, and mean, variance and count of these."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = values if values.dtype == torch.float64 else values.float()
        dims, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
        own = x.mean(dims)
        squares = (x - own.view(shape)).square().sum(dims)  # about the own mean: no digits are lost
        number = torch.full_like(own, x.numel() // x.shape[1])
        counts, means, sums = _all(torch.stack([number, own, squares])[None]).unbind(1)  # (R, C) each
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        variance = (sums + counts * (means - mean).square()).sum(0) / count
        scale = (variance + eps).rsqrt()
        normal = (x - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normal, scale, count)
        ctx.dtype, ctx.dims, ctx.shape = values.dtype, dims, shape
        ctx.mark_non_differentiable(mean, variance, count)
        return normal, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *unused: Any) -> tuple[Tensor, None]:
        normal, scale, count = ctx.saved_tensors
        sums = torch.stack([upstream.sum(ctx.dims), (upstream * normal).sum(ctx.dims)])
        dist.all_reduce(sums)
        mean, along = (item.view(ctx.shape) for item in sums / count)
        return ((upstream - mean - normal * along) * scale.view(ctx.shape)).to(ctx.dtype), None
