"""Losses on regions and pixels: region discrimination, how decided an assignment is, overlap of masks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.losses.vectors import at_least_float32, check_temperature, cosines, log_one_minus_softmax, unit

ENTROPY_GUARD = 1e-30  # inside log2, as in the released code: a saturated pixel keeps a finite gradient


def region_discrimination(regions: Tensor, temperature: float, joint: bool = False) -> Tensor:
    """Each region vector t_nc belongs to its class prototype T_c = l2(mean_n t_nc): -log P(c | t_nc), mean over (N, C).

    `joint` adds version 1's sum over c' != c of -log(1 - P(c' | t_nc)). Nothing is detached, the prototypes neither.

    Args:
        regions: (N, C, K), C >= 2.
        temperature: > 0.
    Source: Chen et al., local discrimination v2, Eq. 10 to 13 (v1: Eq. 11 and 12). Departs: mean, where the papers sum.
    """
    check_temperature(temperature)
    if regions.ndim != 3 or regions.shape[0] < 1 or regions.shape[1] < 2:
        raise ValueError(f"region_discrimination needs regions (N, C, K) with C >= 2, got {tuple(regions.shape)}")
    images, classes, _ = regions.shape
    vectors = unit(regions)
    prototypes = unit(vectors.mean(0))  # (C, K)
    logits = cosines(vectors.flatten(0, 1), prototypes, temperature).reshape(images, classes, classes)
    log_likelihood = logits.log_softmax(-1).diagonal(dim1=1, dim2=2)  # (N, C)
    if joint:
        own = torch.eye(classes, dtype=torch.bool, device=logits.device)
        log_likelihood = log_likelihood + log_one_minus_softmax(logits).masked_fill(own, 0).sum(-1)
    return -log_likelihood.mean()


def assignment_entropy(assignment: Tensor) -> Tensor:
    """Binary entropy of every pixel's membership of every class, in bits, mean over all: 0 when decided, 1 at one half.

    Args:
        assignment: (N, C, *S), probabilities in [0, 1].
    Source: Chen et al., local discrimination v2, implementation details. Departs: log2 as the released code, not ln.
    """
    if assignment.ndim < 2 or assignment.numel() == 0:
        raise ValueError(f"assignment_entropy needs a non-empty (N, C, *S), got {tuple(assignment.shape)}")
    inside = at_least_float32(assignment)
    outside = 1 - inside
    return -(inside * (inside + ENTROPY_GUARD).log2() + outside * (outside + ENTROPY_GUARD).log2()).mean()


def soft_dice(prediction: Tensor, target: Tensor, smooth: float) -> Tensor:
    """Dice loss pooled over the whole batch: 1 - (2 sum p y + s) / (sum p + sum y + s), in [0, 1], 0 is perfect.

    An empty target asks for an empty prediction. With smooth = 0, two empty masks give NaN.

    Args:
        prediction: (N, *S), probabilities in [0, 1].
        target: same shape, 0 or 1 (any dtype).
        smooth: s >= 0, in pixels.
    Source: Chen et al., local discrimination v2. Departs: with the printed 2 (sum p y + s) a perfect match is not 0.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"soft_dice needs one shape, got {tuple(prediction.shape)} and {tuple(target.shape)}")
    if not 0 <= smooth < math.inf:
        raise ValueError(f"smooth must be finite and not negative, got {smooth}")
    prediction = at_least_float32(prediction)
    target = target.to(prediction.dtype)
    overlap = (prediction * target).sum()
    return 1 - (2 * overlap + smooth) / (prediction.sum() + target.sum() + smooth)
