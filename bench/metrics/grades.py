"""How well probabilities of grades agree with the true grades, over all cases."""

from __future__ import annotations

import math
from typing import Any

from bench.registry import metric


@metric(
    "auc",
    title="AUC",
    higher_is_better=True,
    truths=("grade",),
    unit="%",
    scale=100.0,
    pooled=True,
    empty="undefined where a grade is in no case",
)
def auc(prediction: Any, truth: Any, spacing: object = None) -> float:
    """Area under the receiver operating characteristic, in [0, 1], higher is better.

    Of more than two grades the mean of each against the rest. prediction: (N, K) probabilities; truth: (N,) grades.
    """
    from sklearn.metrics import roc_auc_score

    grades = prediction.shape[1]
    if len(set(truth.tolist())) < grades:
        return math.nan
    each = range(1, grades) if grades == 2 else range(grades)
    return math.fsum(roc_auc_score(truth == grade, prediction[:, grade]) for grade in each) / len(each)


@metric(
    "kappa",
    title="weighted kappa",
    higher_is_better=True,
    truths=("grade",),
    digits=3,
    pooled=True,
    empty="undefined where truth and prediction hold one grade only",
)
def weighted_kappa(prediction: Any, truth: Any, spacing: object = None) -> float:
    """Cohen's kappa with quadratic weights, in [-1, 1], higher is better (Cohen, Psychol. Bull. 70(4), 1968).

    The most probable grade is the predicted one. prediction: (N, K) probabilities; truth: (N,) grades.
    """
    from sklearn.metrics import cohen_kappa_score

    chosen = prediction.argmax(1)
    if len({*truth.tolist(), *chosen.tolist()}) < 2:
        return math.nan
    return float(cohen_kappa_score(truth, chosen, labels=range(prediction.shape[1]), weights="quadratic"))
