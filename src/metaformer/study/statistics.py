"""Differences between the networks of a study: intervals, tests, verdicts, and what more seeds would show.

Seeds and test images are two samples that cross, since each run meets each image. For a network and the
baseline let d be 1 where, of the two runs with one seed, only the network's classifies an image correctly, −1
where only the baseline's does, else 0. Images of one cluster (a designer, a patient) count as one draw, so
that all is computed from tables of sums of d, (seeds, clusters).
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaformer.errors import ConfigError, MissingPackage, UnknownName

Verdict = Literal["better", "worse", "equivalent", "unresolved"]
Correct = Mapping[int, NDArray[np.bool_]]
"""Whether each test image is classified correctly, (N,), by the seed of the run."""
Floats = NDArray[np.float64]

LEVEL: Final = 0.05
"""Probability of a false claim; intervals hold the truth with one less it."""
POWER: Final = 0.8
"""Probability of a claim that an effect should have."""
RESAMPLES: Final = 4000
MOST_SEEDS: Final = 200
"""Beyond these a study is not planned."""
_CHUNK: Final = 250
"""Resamples at a time: 20 MB for 10,000 clusters."""
_POINTS: Final = 100
"""A share in points of percent."""


@dataclass(frozen=True)
class Spread:
    """Variance of a mean by source, in squared points: analysis of variance of seeds × clusters.

    With effects of seeds, of clusters and of both together, of variances σ², the mean over S seeds and C
    clusters has the variance σ²_seed / S + σ²_cluster / C + σ²_both / SC.
    """

    seeds: int
    clusters: int
    by_seed: float
    """σ²_seed / S + σ²_both / SC: the variance of the seeds' means, over S."""
    by_cluster: float
    """σ²_cluster / C + σ²_both / SC: the variance of the clusters' means, over C."""
    by_both: float
    """σ²_both / SC."""

    @property
    def test_set(self) -> float:
        """σ²_cluster / C, which more seeds do not lessen."""
        return max(0.0, self.by_cluster - self.by_both)

    def error(self, seeds: int | None = None) -> tuple[float, float]:
        """Standard error of a study of so many seeds, and its degrees of freedom (Satterthwaite)."""
        seeds = seeds or self.seeds
        by_seed, by_both = (part * self.seeds / seeds for part in (self.by_seed, self.by_both))
        variance = by_seed + self.test_set
        by_cluster = self.test_set + by_both
        noise = by_seed**2 / (seeds - 1)
        noise += (by_cluster**2 + by_both**2 / (seeds - 1)) / (self.clusters - 1)
        return float(np.sqrt(variance)), max(1.0, variance**2 / noise) if noise else seeds - 1.0


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and test images, in points, with its 95 % interval."""

    value: float
    low: float
    high: float
    spread: Spread


@dataclass(frozen=True)
class Comparison:
    """A network against the baseline."""

    difference: Estimate
    """Its accuracy less the baseline's."""
    wins: float
    """Share of the seeds with which it is ahead, draws as halves: P(network > baseline)."""
    wins_low: float
    wins_high: float
    p: float
    """Of a difference so large where there is none, both sides; Holm's correction over all comparisons."""
    p_equivalent: float
    """Of a difference so near 0 if the truth is the smallest effect of interest (TOST); Holm's, too."""
    verdict: Verdict


def compare(
    arms: Mapping[str, Correct],
    baseline: str,
    clusters: ArrayLike,
    smallest: float,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Comparison]:
    """Compare every network with the baseline, over the seeds that both have.

    Args:
        arms: results of each network.
        baseline: name of the one that the others are compared with.
        clusters: number of each image's cluster, (N,).
        smallest: smallest effect of interest, in points.
        seed: of the resamples; equal seeds give equal bits.
        resamples: their number.

    Raises:
        UnknownName: no such baseline.
        ConfigError: a network that shares fewer than two seeds with the baseline, or images of a single
            cluster.
        MissingPackage: scipy is not there.
    """
    if baseline not in arms:
        raise UnknownName("baseline", baseline, arms)
    members, sizes = _clusters(clusters)
    gained = {name: gains(arms, name, baseline) for name in arms if name != baseline}
    if few := next((name for name, values in gained.items() if len(values) < 2), None):
        raise ConfigError(
            f"{few}: {len(gained[few])} seeds in common with {baseline}: a comparison needs two"
        )
    tables = {name: _sums(values, members) for name, values in gained.items()}
    means, wins = _bootstrap(tables, sizes, seed, resamples)
    differences = {name: _estimate(table, sizes, means[name]) for name, table in tables.items()}
    p = holm([_p_differs(found) for found in differences.values()])
    p_equivalent = holm([_p_equivalent(found, smallest) for found in differences.values()])
    return {
        name: Comparison(
            found,
            *_wins(tables[name].sum(1), wins[name], seed),
            p=p[i],
            p_equivalent=p_equivalent[i],
            verdict=_verdict(found, p[i], p_equivalent[i]),
        )
        for i, (name, found) in enumerate(differences.items())
    }


def gains(arms: Mapping[str, Correct], name: str, baseline: str) -> Floats:
    """1, 0 or −1 where a network alone, both or neither, or the baseline alone is correct, (S, N).

    Rows are the seeds that both have.
    """
    ours, theirs = arms.get(name, {}), arms.get(baseline, {})
    seeds = sorted(ours.keys() & theirs.keys())
    return np.array([ours[seed].astype(float) - theirs[seed] for seed in seeds])


def estimate(
    values: Mapping[str, ArrayLike], clusters: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """Means in points, such as accuracies, of values of every run and image, (S, N) for each network.

    Raises:
        ConfigError: a network with fewer than two seeds, or images of a single cluster.
        MissingPackage: scipy is not there.
    """
    members, sizes = _clusters(clusters)
    if few := next((name for name, rows in values.items() if len(np.asarray(rows)) < 2), None):
        raise ConfigError(f"{few}: an interval needs runs with two seeds")
    tables = {name: _sums(np.asarray(rows, dtype=float), members) for name, rows in values.items()}
    means, _ = _bootstrap(tables, sizes, seed, resamples)
    return {name: _estimate(table, sizes, means[name]) for name, table in tables.items()}


def excess_over_chance(predicted: ArrayLike, labels: ArrayLike) -> Floats:
    """Correctness less what guessing gives, (S, N), for `estimate`: its mean is 0 where nothing was learned.

    Guessing is to name each class as often as the run does, whatever the image shows: with shares q of the
    predictions and p of the images, Σ p_k q_k of the guesses are correct. A network that always names the
    most frequent class is so at chance, though its accuracy is above 1 / K. Of an image of class k that was
    taken for l the value is 1 or 0, less q_k and p_l, plus Σ p q: shares are of the same images, and centered
    both ways the values vary as their mean does.

    Args:
        predicted: classes that the runs give, (S, N).
        labels: true classes, (N,).
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    count = max(predicted.max(), labels.max()) + 1
    guessed = np.stack([np.bincount(row, minlength=count) for row in predicted]) / labels.size
    true = np.bincount(labels, minlength=count) / labels.size
    return (predicted == labels) - guessed[:, labels] - true[predicted] + (guessed @ true)[:, None]


def power(effect: float, spread: Spread, seeds: int, level: float = LEVEL) -> float:
    """Probability that a study of so many seeds claims a difference of so many points.

    Args:
        effect: the true difference.
        spread: what a pilot of at least two seeds found.
        seeds: of the study.
        level: probability of a false claim; LEVEL over the number of comparisons is Holm's first step.
    """
    stats = _scipy()
    error, df = spread.error(seeds)
    if not error:
        return float(effect != 0)
    threshold, shift = stats.t.ppf(1 - level / 2, df), abs(effect) / error
    tails = stats.nct.sf(threshold, df, shift), stats.nct.cdf(-threshold, df, shift)
    return float(np.nan_to_num(tails).sum())  # below 1e-16 the other tail may be no number


def smallest_detectable(spread: Spread, seeds: int, level: float = LEVEL) -> float:
    """Difference in points that a study of so many seeds claims with probability POWER."""
    low, high = 0.0, spread.error(seeds)[0]
    while high and power(high, spread, seeds, level) < POWER:
        high *= 2
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, spread, seeds, level) < POWER else (low, middle)
    return high


def seeds_needed(effect: float, spread: Spread, level: float = LEVEL) -> int | None:
    """Seeds with which a study claims such a difference with probability POWER.

    None where MOST_SEEDS would not do.
    """
    tried = range(2, MOST_SEEDS + 1)
    place = bisect_left(tried, POWER, key=lambda seeds: power(effect, spread, seeds, level))
    return tried[place] if place < len(tried) else None


def too_few_images(effect: float, spread: Spread, level: float = LEVEL) -> bool:
    """Whether no number of seeds would do: the test set alone leaves too much open."""
    return power(effect, spread, 10**9, level) < POWER


def _clusters(numbers: ArrayLike) -> tuple[NDArray[np.intp], Floats]:
    """Cluster of each image from 0 on, (N,), and numbers of images, (C,)."""
    _, members, sizes = np.unique(np.asarray(numbers), return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise ConfigError(f"{len(sizes)} clusters of test images: an interval needs two")
    return members, sizes.astype(float)


def _sums(values: Floats, members: NDArray[np.intp]) -> Floats:
    """Sums over the images of each cluster, (S, C)."""
    return np.stack([np.bincount(members, weights=row) for row in values])


def _bootstrap(
    tables: Mapping[str, Floats], sizes: Floats, seed: int, resamples: int
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Two-level bootstrap: seeds and clusters are drawn with replacement, each for itself.

    A draw is how often each seed and cluster comes, so that a resample is a product of matrices; sums of
    comparisons are whole numbers, exact in any order, and the same on every machine. All tables meet the same
    draws.

    Returns:
        Means of each table, (R,), and the number of seeds with a positive sum on the drawn clusters, (R,).
    """
    clusters = np.random.default_rng([seed, 0])
    seeds = {
        count: np.random.default_rng([seed, count]) for count in {len(table) for table in tables.values()}
    }
    means: dict[str, list[Floats]] = {name: [] for name in tables}
    wins: dict[str, list[Floats]] = {name: [] for name in tables}
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        drawn = _draws(clusters, len(sizes), size)
        times = {count: _draws(generator, count, size) for count, generator in seeds.items()}
        images = drawn @ sizes
        for name, table in tables.items():
            sums = drawn @ table.T  # (R, S)
            means[name].append((times[len(table)] * sums).sum(1) / (len(table) * images))
            wins[name].append(_won(sums))
    return _joined(means), _joined(wins)


def _joined(parts: Mapping[str, list[Floats]]) -> dict[str, Floats]:
    return {name: np.concatenate(found) for name, found in parts.items()}


def _draws(generator: np.random.Generator, count: int, size: int) -> Floats:
    """How often each of `count` comes among as many draws, (size, count)."""
    places = generator.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
    return np.bincount(places.ravel(), minlength=size * count).reshape(size, count).astype(float)


def _won(sums: Floats) -> Floats:
    return ((sums > 0) + (sums == 0) / 2).sum(-1)


def _estimate(table: Floats, sizes: Floats, resampled: Floats) -> Estimate:
    """Mean of a table with an interval from its resamples.

    Percentiles of the two-level bootstrap, with deviations from the mean stretched by
    t(0.975, df) s / (z(0.975) s*): s* is the deviation of the resamples, s the standard error of `Spread` and
    df its degrees of freedom. Without that intervals are too short where runs vary much, since the bootstrap
    counts (S − 1) / S of the seeds' variance and takes it for known, and too long where runs are alike, since
    it counts what seed and image do together three times (Owen, The pigeonhole bootstrap, 2007).
    docs/study-statistics.md has the share of intervals that hold the truth in simulated studies.
    """
    stats = _scipy()
    value, spread = table.sum() / (len(table) * sizes.sum()), _spread(table, sizes)
    error, df = spread.error()
    deviation = resampled.std()
    tail = 1 - LEVEL / 2
    stretch = error / deviation * stats.t.ppf(tail, df) / stats.norm.ppf(tail) if deviation else 0.0
    low, high = (np.quantile(resampled, (1 - tail, tail)) - value) * stretch
    return Estimate(_POINTS * value, _POINTS * value + low, _POINTS * value + high, spread)


def _spread(table: Floats, sizes: Floats) -> Spread:
    seeds, clusters = table.shape
    value = table.sum() / (seeds * sizes.sum())
    # of a mean whose denominator varies, linearized
    effects = _POINTS * (table - value * sizes) / sizes.mean()
    by_seed, by_cluster = effects.mean(1, keepdims=True), effects.mean(0)
    both = ((effects - by_seed - by_cluster) ** 2).sum() / ((seeds - 1) * (clusters - 1))
    return Spread(
        seeds,
        clusters,
        float(by_seed.var(ddof=1)) / seeds,
        float(by_cluster.var(ddof=1)) / clusters,
        float(both) / (seeds * clusters),
    )


def _wins(observed: Floats, resampled: Floats, seed: int) -> tuple[float, float, float]:
    """Share of seeds that are won, and its interval.

    Resampled test sets say how often other images would turn a win; on top of it each counts as a binomial
    sample of seeds, with Jeffreys' prior: five wins of five, drawn again, would always be five.
    """
    seeds, won = len(observed), float(_won(observed))
    draws = np.random.default_rng([seed, 0, 0]).beta(resampled + 0.5, seeds - resampled + 0.5)
    low, high = np.quantile(draws, (LEVEL / 2, 1 - LEVEL / 2))
    return won / seeds, 0.0 if won == 0 else float(low), 1.0 if won == seeds else float(high)


def _p_differs(found: Estimate) -> float:
    error, df = found.spread.error()
    if not error:
        return float(found.value == 0)
    return float(2 * _scipy().t.sf(abs(found.value) / error, df))


def _p_equivalent(found: Estimate, smallest: float) -> float:
    """Of two one-sided tests (Schuirmann, 1987), against −`smallest` and `smallest`, the larger p-value."""
    error, df = found.spread.error()
    if not error:
        return float(abs(found.value) >= smallest)
    return float(_scipy().t.cdf((abs(found.value) - smallest) / error, df))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction (1979): the k-th smallest of m times m − k + 1, never below those before it."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


def _verdict(found: Estimate, p: float, p_equivalent: float) -> Verdict:
    """What can be claimed; of a difference that is certain and too small to matter, that it is too small."""
    if p_equivalent < LEVEL:
        return "equivalent"
    if p < LEVEL and not found.low <= 0 <= found.high:
        return "better" if found.value > 0 else "worse"
    return "unresolved"


def _scipy() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingPackage("scipy", "study", "statistics of a study") from error
    return stats
