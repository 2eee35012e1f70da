"""DSC against a set-based count, its empty cases, both libraries, and what the module may import."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from bench import registry
from bench.metrics import dsc, mean_score


def masks(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < 0.3


def dsc_of_sets(prediction: np.ndarray, target: np.ndarray) -> list[float]:
    scores = []
    for p, y in zip(prediction, target, strict=True):
        found, wanted = ({tuple(index) for index in np.argwhere(mask)} for mask in (p, y))
        scores.append(2 * len(found & wanted) / (len(found) + len(wanted)))
    return scores


@pytest.mark.parametrize("shape", [(5, 7), (4, 1, 9, 8), (3, 2, 5, 6, 4)])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "float32"])
def test_dsc_of_each_image(shape: tuple[int, ...], dtype: str) -> None:
    prediction, target = masks(*shape, seed=1), masks(*shape, seed=2)
    expected = dsc_of_sets(prediction, target)
    prediction, target = prediction.astype(dtype), target.astype(dtype)
    of_numpy = dsc(prediction, target)
    of_torch = dsc(torch.from_numpy(prediction), torch.from_numpy(target))
    assert of_numpy.dtype == np.float64
    assert of_torch.dtype == torch.float64
    assert of_numpy.tolist() == pytest.approx(expected, rel=1e-15)
    assert of_torch.tolist() == of_numpy.tolist()


def test_dsc_is_symmetric_and_takes_mixed_types() -> None:
    prediction, target = masks(4, 6, 6, seed=3), masks(4, 6, 6, seed=4)
    assert dsc(prediction, target).tolist() == dsc(target.astype(np.int64), prediction.astype(np.float32)).tolist()


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_dsc_ends(library: str, recwarn: pytest.WarningsRecorder) -> None:
    empty, full = np.zeros((1, 4, 4), bool), np.ones((1, 4, 4), bool)
    prediction = np.concatenate([full, empty, full, empty])
    target = np.concatenate([full, full, empty, empty])
    if library == "torch":
        scores = dsc(torch.from_numpy(prediction), torch.from_numpy(target)).tolist()
    else:
        scores = dsc(prediction, target).tolist()
    assert scores[:3] == [1, 0, 0]
    assert math.isnan(scores[3])
    assert not recwarn.list


def test_dsc_counts_large_volumes_exactly() -> None:
    volume = torch.ones(1, 300, 300, 300, dtype=torch.bool)  # 2.7e7 voxels: a float32 sum of ones stops at 1.7e7
    target = volume.clone()
    target[0, 0, 0, 0] = False
    assert dsc(volume, target).item() == 2 * (27_000_000 - 1) / (2 * 27_000_000 - 1)


def test_dsc_refuses_what_is_no_mask() -> None:
    good = np.ones((2, 4, 4), bool)
    with pytest.raises(ValueError, match="one library and shape"):
        dsc(good, good[:, :3])
    with pytest.raises(ValueError, match="one library and shape"):
        dsc(good, torch.from_numpy(good))  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"\(N, \*S\)"):
        dsc(good[0, 0], good[0, 0])
    with pytest.raises(ValueError, match="prediction of 0 and 1 only"):
        dsc(good * 0.7, good)
    with pytest.raises(ValueError, match="target of 0 and 1 only"):
        dsc(good, good * np.uint8(255))
    with pytest.raises(ValueError, match="prediction of 0 and 1 only"):
        dsc(good * math.nan, good)


def test_mean_score_leaves_out_nan_and_order() -> None:
    scores = [0.1, math.nan, 0.7, 1e-17, 0.2]
    assert mean_score(scores) == pytest.approx((0.1 + 0.7 + 0.2) / 4)
    assert mean_score(scores) == mean_score(reversed(scores))
    assert mean_score(torch.tensor([0.25, math.nan, 0.75])) == 0.5
    assert math.isnan(mean_score([math.nan]))
    assert math.isnan(mean_score([]))


def test_registry_says_how_dsc_is_read() -> None:
    info = registry.scan().metrics["dsc"]
    assert info.higher_is_better
    assert (info.scale, info.unit, info.title) == (100, "%", "DSC")


def test_module_imports_no_heavy_library() -> None:
    code = "import sys, bench.metrics; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------------- contract

SHELVES = registry.scan()
CASES = 12


def _truth_and(kind: str, quality: float) -> tuple[np.ndarray, np.ndarray]:
    """(prediction, truth) of 12 cases, right to a share of `quality`, as metrics of that kind of truth take them."""
    rng = np.random.default_rng(3)
    if kind == "mask":
        truth = rng.random((CASES, 16, 16)) < 0.3
        return np.where(rng.random(truth.shape) < quality, truth, ~truth), truth
    if kind == "points":
        truth = rng.uniform(0, 100, (CASES, 2))
        return truth + (1 - quality) * rng.normal(10, 3, truth.shape), truth
    grades = np.arange(CASES) % 2
    right = np.arange(CASES) < CASES * quality
    sure = np.where(right, grades, 1 - grades)
    return np.stack([1 - sure, sure], axis=1).astype(float), grades


@pytest.mark.parametrize("name", list(SHELVES.metrics))
def test_a_metric_is_what_it_declares(name: str) -> None:
    """One number for each case, or one for all where it is pooled, and the better the prediction the better it is."""
    spec = SHELVES.metrics[name]
    assert spec.title and spec.empty and spec.truths and spec.digits >= 0
    function = registry.load(spec)
    for kind in spec.truths:
        spacing = np.full((CASES, 2), 0.5)
        perfect, good, poor = (
            np.atleast_1d(np.asarray(function(*_truth_and(kind, quality), spacing), float))
            for quality in (1.0, 0.9, 0.5)
        )
        assert perfect.shape == ((1,) if spec.pooled else (CASES,))
        assert np.isfinite(perfect).all() and len(set(perfect)) == 1
        values = [value.mean() for value in (perfect, good, poor)]
        assert values == sorted(values, reverse=spec.higher_is_better)
        assert values[0] != values[1] != values[2]


@pytest.mark.parametrize("name", [name for name, spec in SHELVES.metrics.items() if spec.spaced])
def test_a_metric_in_mm_is_undefined_where_a_pixel_has_no_size(name: str) -> None:
    spec = SHELVES.metrics[name]
    values = registry.load(spec)(*_truth_and(spec.truths[0], 0.9), np.full((CASES, 2), np.nan))
    assert np.isnan(np.asarray(values, float)).all()


@pytest.mark.parametrize("task", list(SHELVES.tasks))
def test_a_task_names_metrics_of_its_truth(task: str) -> None:
    spec = SHELVES.tasks[task]
    metrics = SHELVES.metrics_of(spec)
    assert [metric.name for metric in metrics] == list(spec.metrics) and metrics[0].name == spec.headline
    assert all(spec.truth in metric.truths for metric in metrics)


def test_auc_of_ties_and_of_three_grades() -> None:
    """Against the share of pairs in the right order, a tie counting half (Hanley and McNeil 1982)."""
    auc = registry.load(SHELVES.metrics["auc"])
    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 3, 40), rng.integers(0, 5, (40, 3)) / 4

    def pairs(grade: int) -> float:
        ours, others = scores[truth == grade, grade], scores[truth != grade, grade]
        return float(np.mean([(one > other) + 0.5 * (one == other) for one in ours for other in others]))

    assert auc(scores, truth) == pytest.approx(np.mean([pairs(grade) for grade in range(3)]))
    two = np.minimum(truth, 1)
    expected = np.mean([(one > other) + 0.5 * (one == other)
                        for one in scores[two == 1, 1] for other in scores[two == 0, 1]])  # fmt: skip
    assert auc(scores[:, :2], two) == pytest.approx(expected)
    assert math.isnan(auc(scores, two))


def test_weighted_kappa_by_hand() -> None:
    """1 - sum(w O) / sum(w E), w = (i - j)^2, by the table of counts (Cohen 1968)."""
    kappa = registry.load(SHELVES.metrics["kappa"])
    rng = np.random.default_rng(1)
    truth, chosen = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    counts = np.zeros((4, 4))
    np.add.at(counts, (truth, chosen), 1)
    weights = (np.arange(4)[:, None] - np.arange(4)) ** 2
    chance = counts.sum(1)[:, None] * counts.sum(0) / counts.sum()
    assert kappa(np.eye(4)[chosen], truth) == pytest.approx(1 - (weights * counts).sum() / (weights * chance).sum())
    assert kappa(np.eye(4)[truth], truth) == 1
    assert math.isnan(kappa(np.eye(4)[np.zeros(5, int)], np.zeros(5, int)))
