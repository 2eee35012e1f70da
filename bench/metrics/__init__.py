"""Metrics: pure functions that set predictions against the truth; which cases count is not theirs to say.

A metric is `f(prediction, truth, spacing)` of one structure: `prediction` and `truth` as its kind of truth has them
(`bench.data.truths`), `spacing` (n, D) in mm per pixel, NaN where it is not known. It gives one float64 for each of the
n cases, or, where it is declared `pooled`, one for all of them. What a table must know of it stands in its declaration
(`bench.spec.MetricSpec`). Nothing here imports torch or numpy itself.
"""

from bench.metrics.grades import auc, weighted_kappa
from bench.metrics.overlap import dsc, mean_score
from bench.metrics.places import radial_error_mm, radial_error_px

__all__ = ["auc", "dsc", "mean_score", "radial_error_mm", "radial_error_px", "weighted_kappa"]
