"""What the tests of the losses share: golden numbers, seeded inputs, gradients, comparison."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.conftest import GOLDEN


def golden(name: str) -> dict[str, Tensor]:
    """The arrays of a file, whole numbers as int64."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        tensors = {key: torch.from_numpy(np.array(arrays[key])) for key in arrays.files}
    return {key: tensor if tensor.is_floating_point() else tensor.long() for key, tensor in tensors.items()}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def value_and_gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    value = loss(*leaves)
    return value.detach(), list(torch.autograd.grad(value, leaves))


def tangential(gradient: Tensor, unit: Tensor) -> Tensor:
    return gradient - (gradient * unit).sum(-1, keepdim=True) * unit


def assert_near(actual: Tensor, expected: Tensor, rtol: float) -> None:
    """Largest difference relative to the largest expected magnitude."""
    actual, expected = actual.double(), expected.double()
    assert actual.shape == expected.shape
    scale = expected.abs().max().item()
    assert (actual - expected).abs().max().item() <= rtol * scale + 1e-14


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def paired_rows(count: int, dim: int, spread: float, seed: int = 0) -> Tensor:
    """(2 count, dim) float64 rows whose partners differ by `spread` times noise."""
    rows = randn(count, dim, seed=seed)
    return torch.cat([rows, rows + spread * randn(count, dim, seed=seed + 1)])


def cross_entropy_reference(query: Tensor, positive: Tensor, negatives: list[Tensor], temperature: float) -> Tensor:
    right = (query @ positive / temperature).exp()
    wrong = torch.stack([(query @ negative / temperature).exp() for negative in negatives])
    return -(right / (right + wrong.sum())).log()
