"""How much two masks overlap."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from bench.registry import metric

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Mask = TypeVar("Mask", Tensor, np.ndarray)


@metric(
    "dsc",
    title="DSC",
    higher_is_better=True,
    truths=("mask",),
    unit="%",
    scale=100.0,
    empty="a case without target does not count",
)
def dsc(prediction: Mask, target: Mask, spacing: object = None) -> Mask:
    """Dice similarity coefficient of each image, 2 |P and Y| / (|P| + |Y|), in [0, 1], higher is better.

    NaN where both masks are empty. Whether an image without target counts is not said here but where scores are made:
    it does not, whatever is predicted, so that all rows of a table are averaged over the same images.

    Args:
        prediction: (N, *S), bool or exactly 0 and 1; threshold probabilities first. Torch or numpy.
        target: same shape and library.
        spacing: of no matter.
    Returns: (N,) float64.
    Raises: ValueError on other shapes or other values.
    """
    shapes = tuple(prediction.shape), tuple(target.shape)
    if _is_torch(prediction) != _is_torch(target) or shapes[0] != shapes[1] or prediction.ndim < 2:
        raise ValueError(f"dsc needs two masks (N, *S) of one library and shape, got {shapes[0]} and {shapes[1]}")
    predicted, wanted = _as_bool(prediction, "prediction"), _as_bool(target, "target")
    total = _count(predicted) + _count(wanted)
    total[total == 0] = math.nan
    scores: Mask = 2 * _count(predicted & wanted) / total
    return scores


def mean_score(scores: Iterable[float]) -> float:
    """Mean of per-image scores without the NaN ones; NaN when none is left. Does not depend on their order."""
    valid = [score for score in map(float, scores) if not math.isnan(score)]
    return math.fsum(valid) / len(valid) if valid else math.nan


def _as_bool(mask: Any, name: str) -> Any:
    ones = mask == 1
    if not bool((ones | (mask == 0)).all()):
        raise ValueError(f"dsc needs a {name} of 0 and 1 only; threshold it first")
    return ones


def _count(mask: Any) -> Any:
    """(N, *S) bool -> (N,) float64, the number of true elements of each image."""
    counts = mask.reshape(len(mask), math.prod(mask.shape[1:])).sum(1)
    return counts.double() if _is_torch(counts) else counts.astype("float64")


def _is_torch(array: Any) -> bool:
    return hasattr(array, "double")
