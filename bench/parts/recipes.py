"""How many methods are optimised alike: rates that grow with the batch, LARS for large batches, a rising momentum."""

from __future__ import annotations

import math
from typing import Protocol

from bench.spec import Recipe, Stage

LARGE_BATCH = 256  # images per step from which on LARS is used


class LargeBatch(Protocol):
    """Hyper-parameters of a method whose paper trains with large batches."""

    @property
    def lr(self) -> float:
        """LARS, for 256 images; scaled linearly with the batch."""

    @property
    def small_batch_lr(self) -> float:
        """Adam, below 256 images per step."""

    @property
    def weight_decay(self) -> float:
        """Of either optimiser."""

    @property
    def warmup(self) -> float:
        """Share of the steps with a rising rate."""


def linear_rate(lr: float, batch_size: int, reference: int = 256) -> float:
    """A rate for `reference` images per step, scaled linearly with the batch (Goyal et al. 2017, arXiv:1706.02677)."""
    return lr * batch_size / reference


def lars_or_adam(hparams: LargeBatch, batch_size: int) -> Recipe:
    """LARS with a linear rate, as papers of large batches have it; below 256 images, where that vanishes, Adam.

    Both with the same warm-up and cosine.
    """
    stage = Stage(schedule="cosine", warmup=hparams.warmup)
    if batch_size < LARGE_BATCH:
        return Recipe("adam", hparams.small_batch_lr, hparams.weight_decay, stages=(stage,))
    lr = linear_rate(hparams.lr, batch_size, LARGE_BATCH)
    return Recipe("lars", lr, hparams.weight_decay, momentum=0.9, stages=(stage,))


def rising_momentum(start: float, progress: float) -> float:
    """1 - (1 - start) * (cos(pi * progress) + 1) / 2: from `start` to 1 along a cosine (Grill et al. 2020, BYOL)."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
