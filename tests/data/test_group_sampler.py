from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaformer.data.sampler import GroupSampler, PureSampler, Sample
from metaformer.errors import ConfigError, DataError


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    world, accumulate = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    batch = world * accumulate * draw(st.integers(1, 4))
    groups = draw(st.lists(st.integers(0, draw(st.integers(0, 3))), min_size=batch, max_size=200))
    return {
        "groups": groups,
        "batch_size": batch,
        "seed": draw(st.integers(0, 2**32)),
        "world": world,
        "accumulate": accumulate,
        "repeated_aug": draw(st.integers(1, 3)),
    }


def ranks(layout: dict[str, Any], epoch: int, start: int = 0) -> list[list[list[Sample]]]:
    batches = []
    for rank in range(layout["world"]):
        sampler = GroupSampler(rank=rank, **layout)
        sampler.seek(epoch, start)
        batches.append(list(sampler))
        assert len(sampler) == len(batches[-1])
    return batches


def steps(layout: dict[str, Any], epoch: int) -> list[list[Sample]]:
    return ranks({**layout, "world": 1, "accumulate": 1}, epoch)[0]


@given(layouts(), st.integers(0, 9))
def test_an_epoch_shows_what_a_pure_samplers_does(layout: dict[str, Any], epoch: int) -> None:
    options = {name: layout[name] for name in ("batch_size", "seed", "repeated_aug")}
    pure = PureSampler(len(layout["groups"]), **options)
    pure.seek(epoch)
    expected = sorted(sample for batch in pure for sample in batch)
    dealt = steps(layout, epoch)
    assert sorted(sample for step in dealt for sample in step) == expected
    assert len(dealt) == pure.steps
    assert max(Counter((s.index, s.repeat) for s in expected).values()) == 1


@given(layouts(), st.integers(0, 9))
def test_steps_are_of_one_group_where_possible(layout: dict[str, Any], epoch: int) -> None:
    dealt, groups, batch = steps(layout, epoch), layout["groups"], layout["batch_size"]
    held = Counter(groups[sample.index] for step in dealt for sample in step)
    pure = [step for step in dealt if len({groups[sample.index] for sample in step}) == 1]
    assert len(pure) >= sum(count // batch for count in held.values())
    for step in dealt:
        own = [groups[sample.index] for sample in step]
        assert own == sorted(own)  # so that only micro-batches on a border are mixed


@given(layouts(), st.integers(0, 9))
def test_a_step_holds_the_same_on_any_number_of_ranks_and_few_micro_batches_are_mixed(
    layout: dict[str, Any], epoch: int
) -> None:
    many, k, groups = ranks(layout, epoch), layout["accumulate"], layout["groups"]
    size = layout["batch_size"] // (layout["world"] * k)
    for number, step in enumerate(steps(layout, epoch)):
        parts = [micro for own in many for micro in own[number * k : (number + 1) * k]]
        assert all(len(micro) == size for micro in parts)
        assert sorted(sample for micro in parts for sample in micro) == sorted(step)
        kinds = [{groups[sample.index] for sample in micro} for micro in parts]
        borders = len({groups[sample.index] for sample in step}) - 1
        assert sum(len(kind) > 1 for kind in kinds) <= borders


@given(layouts(), st.integers(0, 9), st.data())
def test_resuming_gives_the_rest(layout: dict[str, Any], epoch: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(layout["groups"]) // layout["batch_size"]))
    for full, part in zip(ranks(layout, epoch), ranks(layout, epoch, start), strict=True):
        assert full[start * layout["accumulate"] :] == part


def test_epochs_differ_and_a_small_group_is_seen_as_often_as_others() -> None:
    groups = [1 if index % 20 == 0 else 0 for index in range(101)]
    layout = {"groups": groups, "batch_size": 16, "seed": 0}
    sampler, seen, first = GroupSampler(**layout), Counter[int](), set()
    for epoch in range(400):
        sampler.seek(epoch)
        dealt = list(sampler)
        first.add(dealt[0][0].index)
        seen.update(sample.index for step in dealt for sample in step)
    assert len(first) > 50
    assert min(seen.values()) > 400 * 96 / 101 * 0.94


def test_the_order_is_pinned() -> None:
    """A changed order would silently break the resuming of older runs."""
    sampler = GroupSampler([0, 1, 0, 0, 1, 0, 1, 0], batch_size=2, seed=42)
    sampler.seek(3)
    assert [[s.index for s in batch] for batch in sampler] == [[0, 5], [7, 3], [1, 4], [2, 6]]


def test_impossible_layouts() -> None:
    with pytest.raises(ConfigError, match="multiple of 3"):
        GroupSampler([0] * 100, batch_size=4, world=3)
    with pytest.raises(DataError, match="2 training images do not fill one batch of 8"):
        GroupSampler([0, 1], batch_size=8)
