"""How far found places lie from the true ones."""

from __future__ import annotations

from typing import Any

from bench.registry import metric


@metric(
    "mre_px",
    title="MRE",
    higher_is_better=False,
    truths=("points",),
    unit="px",
    empty="a point that is not in the truth does not count",
)
def radial_error_px(prediction: Any, truth: Any, spacing: object = None) -> Any:
    """Euclidean distance of each found place from the true one, in pixels of the image as stored, lower is better.

    prediction, truth: (N, D), px in the order of the axes. Returns (N,) float64, NaN where either is NaN.
    """
    return ((prediction - truth) ** 2).sum(-1) ** 0.5


@metric(
    "mre_mm",
    title="MRE",
    higher_is_better=False,
    truths=("points",),
    unit="mm",
    spaced=True,
    empty="a point that is not in the truth does not count",
)
def radial_error_mm(prediction: Any, truth: Any, spacing: Any) -> Any:
    """The same distance in mm. spacing: (N, D), mm per pixel in the order of the axes; NaN gives NaN."""
    return (((prediction - truth) * spacing) ** 2).sum(-1) ** 0.5
