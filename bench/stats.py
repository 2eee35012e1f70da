"""Statistics of scores: intervals, comparisons and ranks as pure functions of arrays; knows neither records nor tables.

A score belongs to a method, a seed and a case, and what a reader wants to know generalises to new seeds and new cases.
So a cell is a two-way crossed design of K seeds and n cases, and every interval and test here counts both. An array is
(K, n) or (M, K, n) over M methods; NaN stands for what is missing. What a comparison is made on is what all have: seeds
that every method has, then cases that every one of those has.

Sources: Searle, Casella and McCulloch, Variance Components, 1992 (mean squares); Satterthwaite, Biometrics Bulletin
2(6), 1946 (degrees of freedom); Tukey, The Problem of Multiple Comparisons, 1953 (studentised range); Friedman, J. Am.
Stat. Assoc. 32, 1937 and Nemenyi, 1963, as Demsar, JMLR 7, 2006, puts them together (ranks over tasks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[np.float64]

LEVEL = 0.95
SHRINKAGE = 4.0  # degrees of freedom that the spread of all methods counts for beside a pair's own


class Interval(NamedTuple):
    """A mean with the bounds of its interval, in the unit of the scores; NaN where it cannot be had."""

    mean: float
    low: float
    high: float


# ------------------------------------------------------------------------------------------------------------- a design


def shared(scores: ArrayLike) -> Array:
    """What all methods have of (..., K, n): seeds that none lacks altogether, then cases that none of these lacks."""
    import numpy as np

    found = np.asarray(scores, dtype=float)
    methods = found.reshape(-1, *found.shape[-2:])
    seeds = ~np.isnan(methods).all(axis=2).any(axis=0)
    cases = ~np.isnan(methods[:, seeds]).any(axis=(0, 1))
    return found[..., seeds, :][..., cases]


def _squares(scores: Array) -> Array:
    """Mean squares (3, ...) of seeds, of cases and of the rest, of designs (..., K, n)."""
    import numpy as np

    seeds, cases = scores.shape[-2:]
    whole = scores.mean(axis=(-2, -1), keepdims=True)
    by_seed, by_case = scores.mean(axis=-1, keepdims=True), scores.mean(axis=-2, keepdims=True)
    of_seed = cases * ((by_seed - whole) ** 2).sum(axis=(-2, -1)) / max(1, seeds - 1)
    of_case = seeds * ((by_case - whole) ** 2).sum(axis=(-2, -1)) / max(1, cases - 1)
    rest = ((scores - by_seed - by_case + whole) ** 2).sum(axis=(-2, -1)) / max(1, (seeds - 1) * (cases - 1))
    return np.stack([of_seed, of_case, rest])


def _freedom(seeds: int, cases: int) -> Array:
    """Degrees of freedom (3,) of the three mean squares."""
    import numpy as np

    return np.array([seeds - 1, cases - 1, (seeds - 1) * (cases - 1)], float)


def _variance(squares: Array, freedom: Array, count: int) -> tuple[Array, Array]:
    """Variance of a mean over `count` scores and its degrees of freedom, never below either component's."""
    import numpy as np

    seed, case, rest = squares
    together = seed + case - rest
    spread = (squares**2 / freedom.reshape(3, *[1] * (squares.ndim - 1))).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees = np.where(spread > 0, together**2 / spread, 1.0)
    return np.maximum(together, np.maximum(seed, case)) / count, np.maximum(1.0, degrees)


# ------------------------------------------------------------------------------------------------------------- interval


def interval(scores: ArrayLike, level: float = LEVEL) -> Interval:
    """The mean of one cell (K, n) and its interval for new seeds and new cases.

    With one seed the interval covers new cases only, with one case new seeds only: say so where it is printed. NaN
    bounds where there is a single score. Not clipped to the range of a metric.
    """
    return interval_over_tasks([scores], level)


def interval_over_tasks(scores: Sequence[ArrayLike], level: float = LEVEL) -> Interval:
    """The interval of the mean of one method over several tasks, of each (K, n): variances add, with their freedom."""
    import numpy as np
    from scipy import stats

    tasks = [shared(task) for task in scores]
    if any(task.size == 0 for task in tasks):
        return Interval(np.nan, np.nan, np.nan)
    mean = float(np.mean([task.mean() for task in tasks]))
    if any(task.size == 1 for task in tasks):
        return Interval(mean, np.nan, np.nan)
    parts = [_mean_variance(task) for task in tasks]
    variance, spread = sum(one for one, _ in parts), sum(one**2 / degrees for one, degrees in parts)
    degrees = max(1.0, variance**2 / spread) if spread > 0 else 1.0
    reach = float(stats.t.ppf((1 + level) / 2, degrees)) * variance**0.5 / len(tasks)
    return Interval(mean, mean - reach, mean + reach)


def _mean_variance(found: Array) -> tuple[float, float]:
    """The variance of the mean of a complete design (K, n), and its degrees of freedom."""
    seeds, cases = found.shape
    if min(seeds, cases) == 1:
        line = found.ravel()
        return float(line.var(ddof=1)) / line.size, float(line.size - 1)
    variance, degrees = _variance(_squares(found), _freedom(seeds, cases), found.size)
    return float(variance), float(degrees)


# ----------------------------------------------------------------------------------------------------------- comparison


@dataclass(frozen=True)
class Comparison:
    """Every pair of M methods on one task, or on the mean of several: (M, M) each, row minus column."""

    means: Array  # (M,)
    variance: Array  # of the difference of two means
    freedom: Array  # its degrees of freedom

    @property
    def methods(self) -> int:
        return len(self.means)

    @property
    def p_values(self) -> Array:
        """By the studentised range of M means; 1 on the diagonal and where two methods never differ."""
        import numpy as np

        found = np.ones((self.methods, self.methods))
        one, other = np.triu_indices(self.methods, 1)
        found[one, other] = found[other, one] = self._sf(self._ratio[one, other], self.freedom[one, other])
        return found

    @property
    def _ratio(self) -> Array:
        """Differences of means in standard errors (M, M), infinite where a difference is without any doubt."""
        import numpy as np

        apart = np.abs(self.means[:, None] - self.means)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(apart > 0, apart / np.sqrt(self.variance), 0.0)

    def _sf(self, ratio: Array, freedom: Array) -> Array:
        import numpy as np
        from scipy import stats

        found = np.array(stats.studentized_range.sf(ratio * 2**0.5, self.methods, freedom))
        return np.where(ratio > 0, found, 1.0)

    def near(self, row: int, level: float = LEVEL) -> NDArray[np.bool_]:
        """Which methods (M,) cannot be told from that one: their p-value is 1 - level or more.

        The studentised range takes milliseconds a value, so it is asked only where its bounds leave it open: it is
        never below the t-test of the one pair, and never above the sum of those of all pairs.
        """
        import numpy as np
        from scipy import stats

        ratio, freedom = self._ratio[row], self.freedom[row]
        least = 2 * stats.t.sf(ratio, freedom)
        most = least * (self.methods * (self.methods - 1) / 2)
        kept: NDArray[np.bool_] = (ratio == 0) | (least >= 1 - level)
        kept[row] = True
        open_ = ~kept & (most >= 1 - level)
        kept[open_] = self._sf(ratio[open_], freedom[open_]) >= 1 - level
        return np.asarray(kept)

    def least_difference(self, row: int | None = None, level: float = LEVEL) -> float:
        """The least lead over another method that would be found, the median over the others.

        row: of this method; None: of the one with the highest mean.
        """
        import numpy as np
        from scipy import stats

        chosen = int(self.means.argmax()) if row is None else row
        others = np.arange(self.methods) != chosen
        errors, freedom = np.sqrt(self.variance[chosen][others] / 2), self.freedom[chosen][others]
        order = np.argsort(stats.t.ppf((1 + level) / 2, freedom) * errors)  # as the studentised range would order them
        middle = order[[(len(order) - 1) // 2, len(order) // 2]]
        return float(np.mean([self._reach(freedom[at], level) * errors[at] for at in middle]))

    def _reach(self, freedom: float, level: float) -> float:
        """The studentised range of M means that is not passed with probability `level`.

        scipy's own inverse takes a tenth of a second; its root lies between those of one pair and of all of them.
        """
        from scipy import optimize, stats

        pairs = self.methods * (self.methods - 1) / 2
        low, high = (2**0.5 * stats.t.isf((1 - level) / 2 / count, freedom) for count in (1, pairs))
        if self.methods == 2:
            return float(low)

        def over(reach: float) -> float:
            return float(stats.studentized_range.sf(reach, self.methods, freedom)) - (1 - level)

        return float(optimize.brentq(over, low, high, xtol=1e-4))


def compare(scores: ArrayLike | Sequence[ArrayLike]) -> Comparison:
    """Compares M methods on one task (M, K, n), or on the mean over several, one array each.

    The mean squares of a pair's differences are shrunk towards twice those of all methods' interactions, so that a pair
    that happens to move together is not taken at its word. ValueError for fewer than two seeds, cases or methods that
    all of them share: with one seed nothing can be said of methods.
    """
    import numpy as np

    tasks = [np.asarray(task, float) for task in _tasks(scores)]
    parts = [_one_task(task) for task in tasks]
    variance = np.sum([part.variance for part in parts], axis=0) / len(parts) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sum([part.variance**2 / part.freedom for part in parts], axis=0)
        freedom = np.where(spread > 0, np.sum([part.variance for part in parts], axis=0) ** 2 / spread, 1.0)
    return Comparison(np.mean([part.means for part in parts], axis=0), variance, np.maximum(1.0, freedom))


def _tasks(scores: Any) -> Sequence[Any]:
    """One array per task: `scores` itself is one where its entries are (K, n)."""
    import numpy as np

    if isinstance(scores, np.ndarray):
        return list(scores) if scores.ndim == 4 else [scores]
    return list(scores) if np.ndim(scores[0]) == 3 else [np.asarray(scores, float)]


def _one_task(scores: Array) -> Comparison:
    found = shared(scores)
    methods, seeds, cases = found.shape
    if min(methods, seeds, cases) < 2:
        raise ValueError(
            f"a comparison takes two methods, seeds and cases at least; these share {methods}, {seeds} and {cases}"
        )
    freedom = _freedom(seeds, cases)
    weight = freedom.reshape(3, 1, 1)
    own = _squares(found[:, None] - found[None])  # (3, M, M)
    pooled = _interactions(found).reshape(3, 1, 1)
    shrunk = (SHRINKAGE * 2 * pooled + weight * own) / (SHRINKAGE + weight)
    variance, degrees = _variance(shrunk, SHRINKAGE + freedom, seeds * cases)
    return Comparison(found.mean(axis=(1, 2)), variance, degrees)


def _interactions(scores: Array) -> Array:
    """Mean squares (3,) of method x seed, method x case and the rest, of (M, K, n)."""
    centred = scores - scores.mean(axis=0)  # what is common to all methods is taken off
    methods, seeds, cases = scores.shape
    squares = _squares(centred) * [[max(1, seeds - 1)], [max(1, cases - 1)], [max(1, (seeds - 1) * (cases - 1))]]
    total: Array = squares.sum(axis=1) / ((methods - 1) * _freedom(seeds, cases))
    return total


def pairwise(scores: ArrayLike | Sequence[ArrayLike]) -> Array:
    """p-values (M, M) of all pairs, 1 on the diagonal; of one task (M, K, n), or of the mean over several."""
    return compare(scores).p_values


def near_best(
    scores: ArrayLike | Sequence[ArrayLike], higher_is_better: bool = True, level: float = LEVEL
) -> NDArray[np.bool_]:
    """Which methods (M,) cannot be told from the best; where nothing differs all are kept in at least `level`."""
    found = compare(scores)
    return found.near(int(found.means.argmax() if higher_is_better else found.means.argmin()), level)


def seeds_for(
    scores: ArrayLike | Sequence[ArrayLike], difference: float, level: float = LEVEL, most: int = 1000
) -> int:
    """Seeds that it would take to find a lead of `difference`, with the cases that are there; 0 where no number would.

    The components of variance are taken as they are estimated here, so this is a guide, not a promise.
    """
    import numpy as np
    from scipy import stats

    tasks = [shared(np.asarray(task, float)) for task in _tasks(scores)]
    parts = [(2 * _interactions(task), task.shape[1], task.shape[2]) for task in tasks]

    def found_with(seeds: int) -> bool:
        variance, spread = 0.0, 0.0
        for (seed, case, rest), now, cases in parts:
            planned = np.array([seed, rest + max(0.0, case - rest) * seeds / now, rest])
            one, degrees = map(float, _variance(planned, SHRINKAGE + _freedom(seeds, cases), seeds * cases))
            variance, spread = variance + one, spread + one**2 / degrees
        if spread == 0:
            return True
        ratio = difference * len(parts) / (variance / 2) ** 0.5
        freedom = max(1.0, variance**2 / spread)
        return float(stats.studentized_range.sf(ratio, tasks[0].shape[0], freedom)) <= 1 - level

    if not found_with(most):
        return 0
    too_few, enough = 1, most
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if found_with(middle) else (middle, enough)
    return enough


# ----------------------------------------------------------------------------------------------------------- over tasks


@dataclass(frozen=True)
class Ranks:
    """How M methods rank over T tasks, the tasks being the sample: rank 1 is the best."""

    average: Array  # (M,)
    statistic: float  # Friedman's
    p_value: float
    nemenyi: Array  # p-values (M, M)
    critical_difference: float  # of two average ranks, at the level asked for

    def tied(self, one: int, other: int) -> bool:
        """Whether two methods are of one group of the critical-difference diagram."""
        return bool(abs(self.average[one] - self.average[other]) < self.critical_difference)


LEAST_TASKS = 6  # below that, whether methods differ on tasks like these cannot be answered


def ranks(scores: ArrayLike, higher_is_better: bool = True, level: float = LEVEL) -> Ranks:
    """Ranks of methods over tasks (T, M), one number each; ties share a rank. ValueError below six tasks."""
    import numpy as np
    from scipy import stats

    found = np.asarray(scores, float)
    tasks, methods = found.shape
    if tasks < LEAST_TASKS or methods < 3 or np.isnan(found).any():
        raise ValueError(
            f"ranks take {LEAST_TASKS} tasks that three or more methods have, not {tasks} tasks and {methods} methods"
        )
    placed = stats.rankdata(-found if higher_is_better else found, axis=1)
    average = placed.mean(axis=0)
    statistic, p_value = stats.friedmanchisquare(*placed.T)
    unit = (methods * (methods + 1) / (6 * tasks)) ** 0.5
    apart = np.abs(average[:, None] - average) / unit * 2**0.5
    nemenyi = np.array(stats.studentized_range.sf(apart, methods, np.inf))
    np.fill_diagonal(nemenyi, 1.0)
    reach = float(stats.studentized_range.ppf(level, methods, np.inf)) / 2**0.5 * unit
    return Ranks(average, float(statistic), float(p_value), nemenyi, reach)


def holm(p_values: ArrayLike) -> Array:
    """p-values of several chosen pairs, adjusted by Holm's step-down rule: (P,)."""
    import numpy as np

    found = np.asarray(p_values, float)
    order = np.argsort(found)
    stepped = np.maximum.accumulate(found[order] * np.arange(len(found), 0, -1))
    adjusted = np.empty_like(found)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


# ----------------------------------------------------------------------------------------------------------- aggregates


def interquartile_mean(scores: ArrayLike) -> float:
    """The mean of all (seed, task) scores but the quarter at each end (Agarwal et al., NeurIPS 2021).

    Scores of one metric, or scaled per task to one range; ValueError where one is missing.
    """
    import numpy as np
    from scipy import stats

    found = np.asarray(scores, float)
    if np.isnan(found).any() or found.size == 0:
        raise ValueError("an interquartile mean takes every score of every seed and task")
    return float(stats.trim_mean(found, 0.25, axis=None))


def probability_of_improvement(ours: ArrayLike, theirs: ArrayLike) -> float:
    """How often a seed of ours beats one of theirs, ties by half, averaged over tasks; higher scores are better.

    ours, theirs: (K, T) and (L, T). Agarwal et al., NeurIPS 2021: the Mann-Whitney statistic over its maximum.
    """
    import numpy as np

    one, other = np.asarray(ours, float)[:, None], np.asarray(theirs, float)[None]
    return float(((one > other) + 0.5 * (one == other)).mean())
