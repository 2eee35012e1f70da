"""What the losses share: checks, unit vectors, cosines that autocast leaves alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

ZERO_NORM = 1e-12


def check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def check_shape(loss: str, name: str, tensor: Tensor, *shape: str | int) -> None:
    """Refuse a tensor of another shape; a letter stands for any length of at least 1, a number for itself."""
    fits = tensor.ndim == len(shape) and all(
        given == wanted if isinstance(wanted, int) else given > 0
        for given, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{loss} needs {name} ({', '.join(map(str, shape))}), got {tuple(tensor.shape)}")


def check_pair(loss: str, left: Tensor, right: Tensor) -> None:
    if left.ndim != 2 or left.shape[0] < 1 or left.shape != right.shape:
        raise ValueError(f"{loss} needs two tensors (N, D) alike, got {tuple(left.shape)} and {tuple(right.shape)}")


def at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def unit(vectors: Tensor) -> Tensor:
    """(..., D) -> unit vectors along the last axis; zero vectors stay zero and get no gradient."""
    vectors = at_least_float32(vectors)
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors * torch.where(norm > ZERO_NORM, norm.clamp_min(ZERO_NORM).reciprocal(), 0.0)


def cosines(left: Tensor, right: Tensor, temperature: float) -> Tensor:
    """Unit vectors (N, D) and (M, D) -> (N, M) cosines / temperature."""
    logits: Tensor = _Product.apply(left / temperature, right.T)
    return logits


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in the precision they have, under autocast too. For a gradient use `cosines`."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


class _Product(torch.autograd.Function):
    """Matrix product that autocast leaves alone, also when the backward pass runs inside it."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return product(left, right)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        return (
            product(upstream, right.T) if ctx.needs_input_grad[0] else None,
            product(left.T, upstream) if ctx.needs_input_grad[1] else None,
        )


def log_one_minus_softmax(logits: Tensor) -> Tensor:
    """log(1 - softmax(logits)) over the last axis (>= 2 finite entries), exact also where the softmax rounds to 1.

    Only the largest entry can exceed one half, so only it needs the sum of the others instead of 1 - p.
    """
    top_value, top = logits.max(-1, keepdim=True)
    others = logits.scatter(-1, top, -math.inf)
    log_others = others.logsumexp(-1, keepdim=True)
    log_total = torch.logaddexp(log_others, top_value)
    return torch.log1p(-(others - log_total).exp()).scatter(-1, top, log_others - log_total)
