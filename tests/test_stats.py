"""Statistics against reference values, against their own definitions, and against what they promise on null data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as reference

from bench import stats

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((GOLDEN / f"stats_{name}.json").read_text())["cases"]
    return cases


def drawn(*shape: int, seed: int = 0, seeds: float = 0.02, cases: float = 0.08, rest: float = 0.03) -> np.ndarray:
    """Scores (M, K, n) of methods that do not differ."""
    rng = np.random.default_rng(seed)
    methods, repetitions, count = shape
    common = rng.normal(0.7, cases, count) + rng.normal(0, 0.02, (methods, 1, count))
    return common + rng.normal(0, seeds, (methods, repetitions, 1)) + rng.normal(0, rest, shape)


# -------------------------------------------------------------------------------------------------------------- golden


@pytest.mark.parametrize("case", golden("crossed"), ids=lambda case: str(np.shape(case["scores"])))
def test_crossed_designs_are_as_statsmodels_has_them(case: dict[str, Any]) -> None:
    scores = np.array(case["scores"])
    for row, expected in zip(scores, case["cells"], strict=True):
        assert stats.interval(row) == pytest.approx((expected["mean"], expected["low"], expected["high"]), abs=1e-9)
    found = stats.compare(scores)
    for pair, expected in case["pairs"].items():
        one, other = (int(place) for place in pair.replace("-", " ").replace(",", " ").split())
        assert found.variance[one, other] == pytest.approx(expected["variance"], abs=1e-9)
        assert found.freedom[one, other] == pytest.approx(expected["df"], abs=1e-9)
        assert found.p_values[one, other] == pytest.approx(expected["p"], abs=1e-6)
    assert stats.near_best(scores).tolist() == case["indistinguishable_from_best"]


@pytest.mark.parametrize("case", golden("ranks"), ids=lambda case: str(np.shape(case["scores"])))
def test_ranks_are_as_scipy_and_posthocs_have_them(case: dict[str, Any]) -> None:
    found = stats.ranks(case["scores"], case["higher_is_better"])
    assert found.average == pytest.approx(np.array(case["average_ranks"]), abs=1e-9)
    assert found.statistic == pytest.approx(case["friedman"]["statistic"], abs=1e-9)
    assert found.p_value == pytest.approx(case["friedman"]["p"], abs=1e-6)
    assert found.nemenyi == pytest.approx(np.array(case["nemenyi"]), abs=1e-6)
    assert found.critical_difference == pytest.approx(case["critical_difference_05"], abs=1e-6)
    chosen = list(case["wilcoxon"])
    assert stats.holm([case["wilcoxon"][pair] for pair in chosen]) == pytest.approx(
        np.array([case["holm"][pair] for pair in chosen]), abs=1e-9
    )


@pytest.mark.parametrize("case", golden("aggregate"), ids=lambda case: str(np.shape(case["a"])))
def test_aggregates_are_as_rliable_has_them(case: dict[str, Any]) -> None:
    assert stats.interquartile_mean(case["a"]) == pytest.approx(case["iqm_a"], abs=1e-9)
    assert stats.interquartile_mean(case["b"]) == pytest.approx(case["iqm_b"], abs=1e-9)
    assert stats.probability_of_improvement(case["a"], case["b"]) == pytest.approx(
        case["probability_of_improvement"], abs=1e-9
    )


# --------------------------------------------------------------------------------------------------- missing, few, one


def test_what_is_missing_is_compared_on_what_all_have() -> None:
    scores = drawn(4, 5, 12)
    holed = scores.copy()
    holed[1, 2] = np.nan  # a seed that one method lacks
    holed[3, 0, 5] = np.nan  # a case that is undefined once
    kept = np.delete(np.delete(scores, 2, axis=1), 5, axis=2)
    assert np.array_equal(stats.shared(holed), kept)
    assert stats.pairwise(holed) == pytest.approx(stats.pairwise(kept))
    assert stats.interval(holed[1]) == pytest.approx(stats.interval(np.delete(scores[1], 2, axis=0)))


def test_one_seed_gives_an_interval_of_cases_and_no_comparison() -> None:
    scores = drawn(3, 1, 20)
    found = stats.interval(scores[0])
    reach = reference.t.ppf(0.975, 19) * scores[0].std(ddof=1) / math.sqrt(20)
    assert found == pytest.approx((scores[0].mean(), scores[0].mean() - reach, scores[0].mean() + reach))
    for asked in (stats.pairwise, stats.near_best, stats.compare):
        with pytest.raises(ValueError, match="these share 3, 1 and 20"):
            asked(scores)


def test_nothing_gives_nothing() -> None:
    assert all(map(math.isnan, stats.interval(np.full((3, 4), np.nan))))
    found = stats.interval([[0.5]])
    assert found.mean == 0.5 and math.isnan(found.low) and math.isnan(found.high)


def test_scores_that_are_all_the_same_are_not_told_apart() -> None:
    same = np.full((3, 4, 5), 0.4)
    assert stats.pairwise(same).tolist() == np.ones((3, 3)).tolist()
    assert stats.near_best(same).all()
    assert stats.interval(same[0]) == pytest.approx((0.4, 0.4, 0.4))
    apart = same.copy()
    apart[0] += 0.1  # by exactly as much in every case: no doubt at all
    assert stats.near_best(apart).tolist() == [True, False, False]


def test_a_lead_is_found_in_its_direction() -> None:
    scores = drawn(5, 5, 20)
    scores[2] += 0.15
    assert stats.near_best(scores).tolist() == [False, False, True, False, False]
    assert not stats.near_best(scores, higher_is_better=False)[2]
    assert np.array_equal(stats.pairwise(scores).T, stats.pairwise(scores))


@pytest.mark.parametrize("seed", range(8))
def test_the_mark_of_the_best_is_the_p_value(seed: int) -> None:
    """Where bounds decide, and where they do not."""
    rng = np.random.default_rng(seed)
    scores = drawn(6, 3, 12, seed=seed) + rng.normal(0, 0.1, (6, 1, 1))
    found = stats.compare(scores)
    best = int(found.means.argmax())
    assert np.array_equal(stats.near_best(scores), found.p_values[best] >= 0.05)
    assert np.array_equal(stats.near_best(scores, level=0.5), found.p_values[best] >= 0.5)


def test_two_methods_are_a_t_test() -> None:
    """The studentised range of two means is a t times the root of two."""
    found = stats.compare(drawn(2, 4, 15, seed=3))
    t = abs(found.means[0] - found.means[1]) / math.sqrt(found.variance[0, 1])
    assert found.p_values[0, 1] == pytest.approx(2 * reference.t.sf(t, found.freedom[0, 1]), rel=1e-6)


def test_the_mean_of_tasks_adds_variances_and_counts_their_freedom() -> None:
    tasks = [drawn(3, 4, 12, seed=1), 2 * drawn(3, 4, 20, seed=2)]
    whole, parts = stats.compare(tasks), [stats.compare(task) for task in tasks]
    assert whole.means == pytest.approx((parts[0].means + parts[1].means) / 2)
    assert whole.variance == pytest.approx((parts[0].variance + parts[1].variance) / 4)
    one, other = (part.variance[0, 1] for part in parts)
    expected = (one + other) ** 2 / (one**2 / parts[0].freedom[0, 1] + other**2 / parts[1].freedom[0, 1])
    assert whole.freedom[0, 1] == pytest.approx(expected)


def test_the_least_difference_is_the_lead_that_is_just_found() -> None:
    scores = drawn(2, 5, 20, seed=4)
    least = stats.compare(scores).least_difference()
    lead = scores[1].mean() - scores[0].mean()
    for share, found in ((0.999, False), (1.001, True)):
        moved = scores.copy()
        moved[0] += lead + share * least
        assert (stats.pairwise(moved)[0, 1] < 0.05) == found


def test_more_seeds_are_asked_for_a_smaller_lead() -> None:
    scores = drawn(6, 3, 20, seeds=0.04, rest=0.05)
    least = stats.compare(scores).least_difference()
    asked = [stats.seeds_for(scores, share * least) for share in (1.5, 0.75, 0.5)]
    assert 0 < asked[0] < asked[1] < asked[2]
    assert stats.seeds_for(scores, 1e-6) == 0  # the cases alone leave more doubt than that


def test_ranks_need_tasks() -> None:
    with pytest.raises(ValueError, match="ranks take 6 tasks"):
        stats.ranks(np.random.default_rng(0).random((5, 4)))
    clear = np.tile([0.9, 0.5, 0.1], (8, 1))
    found = stats.ranks(clear)
    assert found.average.tolist() == [1, 2, 3] and not found.tied(0, 2)
    assert stats.ranks(clear, higher_is_better=False).average.tolist() == [3, 2, 1]


# ------------------------------------------------------------------------------------------------------------ promises


def test_where_nothing_differs_little_is_excluded_and_intervals_cover() -> None:
    """A small part of tests/benchmarks/stats_null.py."""
    excluded = np.mean([not stats.near_best(drawn(12, 3, 20, seed=seed)).all() for seed in range(120)])
    assert excluded <= 0.08
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        cell = 0.7 + rng.normal(0, 0.03, (5, 1)) + rng.normal(0, 0.08, (1, 20)) + rng.normal(0, 0.03, (5, 20))
        found = stats.interval(cell)
        covered += found.low <= 0.7 <= found.high
    assert 0.91 <= covered / 400 <= 0.985
