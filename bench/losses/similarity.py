"""Agreement without negatives: cosine between predictions and targets, correlation between embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.losses.vectors import at_least_float32, check_pair, check_shape, cosines, unit

VARIANCE_GUARD = 1e-5  # added to the variance of a dimension, as batch normalisation does


def triplet_similarity(p1: Tensor, p2: Tensor, p3: Tensor, z1: Tensor, z2: Tensor, z3: Tensor) -> Tensor:
    """Half of [D(p1, z2) + D(p2, z1) + D(p1, z3) + D(p3, z1)], D = -cosine averaged over the batch; in [-2, 2].

    The z are constants: no gradient reaches them. Written here, since lightly's `NegativeCosineSimilarity` divides by a
    guard of 1e-8 where a vector is zero and gives it a gradient of that size.

    Args:
        p1, p2, p3: (B, D) predictions for two views of an image and one of its neighbour.
        z1, z2, z3: (B, D) projections of the same three.
    Source: Liu et al., SimTriplet, MICCAI 2021.
    """
    check_shape("triplet_similarity", "p1", p1, "B", "D")
    for name, given in (("p2", p2), ("p3", p3), ("z1", z1), ("z2", z2), ("z3", z3)):
        check_shape("triplet_similarity", name, given, *p1.shape)
    p1, p2, p3 = unit(p1), unit(p2), unit(p3)
    z1, z2, z3 = unit(z1.detach()), unit(z2.detach()), unit(z3.detach())
    return -(p1 * z2 + p2 * z1 + p1 * z3 + p3 * z1).sum(1).mean() / 2


def barlow_twins(z0: Tensor, z1: Tensor, weight: float, center: bool = True) -> Tensor:
    """Make the correlation C between the dimensions of two embeddings the identity: sum_i (1 - C_ii)^2 + weight * off.

    off = sum over i != j of C_ij^2. Nothing is detached. Centred, C is that of lightly's `BarlowTwinsLoss`, which
    multiplies in half precision under autocast and cannot leave the mean in.

    Args:
        z0: (N, D), N >= 2 images (or pixels).
        z1: (N, D), row i belongs to z0's row i.
        weight: >= 0, of the off-diagonal terms.
        center: True: z-scores over the N, biased variance + 1e-5, C = z0^T z1 / N. False: neither mean nor guard,
            C_ij = sum z0_i z1_j / (|z0_i| |z1_j|), where a dimension that is zero throughout has no correlation.
    Source: Zbontar et al., ICML 2021, Eq. 1 and 2; without centring: MixCL's pixel identity, its off-diagonal term read
    as the sum of C_ij^2 where C_ii is printed.
    """
    check_pair("barlow_twins", z0, z1)
    if len(z0) < 2:
        raise ValueError(f"barlow_twins needs at least 2 rows, got {tuple(z0.shape)}")
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must be finite and not negative, got {weight}")
    columns = _z_scores if center else unit
    correlation = cosines(columns(z0.T), columns(z1.T), 1.0)  # (D, D)
    on_diagonal = correlation.diagonal()
    off_diagonal = correlation - torch.diag(on_diagonal)
    return (1 - on_diagonal).square().sum() + weight * off_diagonal.square().sum()


def _z_scores(columns: Tensor) -> Tensor:
    """(D, N) -> the same with mean 0 and length nearly 1 along N: z-scores divided by the root of N."""
    columns = at_least_float32(columns)
    centred = columns - columns.mean(1, keepdim=True)
    variance = centred.square().mean(1, keepdim=True)
    return centred * (variance + VARIANCE_GUARD).rsqrt() / math.sqrt(columns.shape[1])
