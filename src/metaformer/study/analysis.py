"""What a study has shown so far: accuracies, comparisons, controls and power."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from metaformer.study.results import Arm, Cost, RunResult
from metaformer.study.statistics import (
    LEVEL,
    Comparison,
    Correct,
    Estimate,
    compare,
    estimate,
    excess_over_chance,
    gains,
    seeds_needed,
    smallest_detectable,
    too_few_images,
)
from metaformer.study.study_dir import Study, tuned_as

REPEAT: Final = "repeat"
SHUFFLED: Final = "shuffled_labels"


@dataclass(frozen=True)
class Reach:
    """What a comparison can find."""

    smallest: float
    """Difference in points that it claims with probability POWER."""
    seeds: int | None
    """Seeds with which it would claim the smallest effect of interest as often; None above MOST_SEEDS."""
    too_few_images: bool
    """Whether no number of seeds would do."""


@dataclass(frozen=True)
class Analysis:
    """Statistics of a study as far as it has come; what has fewer than two seeds is left out."""

    study: Study
    correct: Mapping[str, Correct]
    """Results on the test images of every network with a finished run."""
    accuracy: Mapping[str, Estimate]
    comparisons: Mapping[str, Comparison]
    """With the baseline: of the other mixers and the controls that are networks of their own."""
    repeat: Comparison | None
    """The baseline with other seeds against itself (A/A), which takes no power from the comparisons."""
    over_chance: Estimate | None
    """Accuracy of networks that were trained on shuffled labels, less chance."""

    @property
    def level(self) -> float:
        """Probability of a false claim in the first step of Holm's correction."""
        return LEVEL / max(1, len(self.comparisons))

    @cached_property
    def ranked(self) -> list[str]:
        """Compared networks, the best first."""
        return sorted(self.comparisons, key=lambda name: -self.comparisons[name].difference.value)

    @property
    def networks(self) -> list[Arm]:
        """Networks with learning rates of their own, the baseline first; charts color them in this order."""
        return [arm for arm in self.study.arms if tuned_as(arm, self.study.plan) == arm.name]

    @cached_property
    def reach(self) -> dict[str, Reach]:
        """What each comparison can find, by its own spread."""
        smallest, level = self.study.plan.smallest_effect, self.level
        spreads = {name: comparison.difference.spread for name, comparison in self.comparisons.items()}
        return {
            name: Reach(
                smallest_detectable(spread, spread.seeds, level),
                seeds_needed(smallest, spread, level),
                too_few_images(smallest, spread, level),
            )
            for name, spread in spreads.items()
        }

    def comparison(self, arm: Arm) -> Comparison | None:
        """The comparison of a network, or of the repeated baseline, with the baseline."""
        return self.repeat if arm.control == REPEAT else self.comparisons.get(arm.name)

    def cost(self, arm: Arm) -> Cost | None:
        """Costs at the size of training images, or the smallest that was measured."""
        size = self._image_size
        ordered = sorted(arm.costs, key=lambda cost: (cost.image_size != size, cost.image_size))
        return ordered[0] if ordered else None

    @cached_property
    def _image_size(self) -> int:
        return self.study.plan.config().data.image_size

    def on_edge(self, arm: Arm) -> bool:
        """Whether the chosen learning rate is the lowest or highest tried: a better one may lie beyond."""
        rates = self.study.plan.learning_rates
        return arm.learning_rate in (min(rates), max(rates))

    def class_differences(self) -> dict[str, NDArray[np.float64]]:
        """Accuracy of each class less the baseline's, in points, (K,); NaN of classes without images."""
        labels, count = self.study.test_set.labels, len(self.study.test_set.class_names)
        sizes = np.bincount(labels, minlength=count)
        found = {}
        for name in self.ranked:
            gained = 100 * gains(self.correct, name, self.study.plan.baseline).mean(0)
            sums = np.bincount(labels, weights=gained, minlength=count)
            found[name] = np.divide(sums, sizes, out=np.full(count, np.nan), where=sizes > 0)
        return found


def analyze(study: Study) -> Analysis:
    """Statistics of a study.

    Raises:
        DataError: predictions of a finished run are missing or damaged.
        ConfigError: test images of a single cluster.
        MissingPackage: scipy is not there.
    """
    finished = [run for run in study.runs if run.role != "sweep" and run.test is not None and not run.error]
    labels, clusters = study.test_set.labels, study.test_set.clusters
    predicted: dict[str, dict[int, NDArray[np.int32]]] = {}
    for run in sorted(finished, key=lambda run: run.seed):
        predicted.setdefault(run.arm, {})[run.seed] = study.predictions(run.name).predicted
    correct = {name: {s: found == labels for s, found in runs.items()} for name, runs in predicted.items()}
    several = {name: list(runs.values()) for name, runs in correct.items() if len(runs) > 1}
    baseline, smallest = study.plan.baseline, study.plan.smallest_effect
    ready = [
        arm
        for arm in study.arms
        if arm.control != SHUFFLED and arm.name != baseline and len(gains(correct, arm.name, baseline)) > 1
    ]

    def against_baseline(arms: Iterable[Arm]) -> dict[str, Comparison]:
        names = [baseline, *(arm.name for arm in arms)]
        return compare({name: correct.get(name, {}) for name in names}, baseline, clusters, smallest)

    repeats = against_baseline(arm for arm in ready if arm.control == REPEAT)
    shuffled = {
        arm.name: excess_over_chance(list(predicted[arm.name].values()), labels)
        for arm in study.arms
        if arm.control == SHUFFLED and arm.name in several
    }
    return Analysis(
        study,
        correct,
        {name: _within(found, 0, 100) for name, found in estimate(several, clusters).items()},
        against_baseline(arm for arm in ready if arm.control != REPEAT),
        next(iter(repeats.values()), None),
        next(iter(estimate(shuffled, clusters).values()), None),
    )


def _within(found: Estimate, low: float, high: float) -> Estimate:
    """An estimate whose interval ends where the values do."""
    return replace(found, low=max(low, found.low), high=min(high, found.high))


def sweep_means(runs: Sequence[RunResult], arm: str) -> list[tuple[float, float]]:
    """Learning rates of an arm with the mean validation scores of the seeds that did not fail."""
    found: dict[float, list[float]] = {}
    for run in runs:
        if run.role == "sweep" and run.arm == arm and run.validation is not None:
            found.setdefault(run.learning_rate, []).append(run.validation)
    return [(rate, sum(values) / len(values)) for rate, values in sorted(found.items())]
