"""Samples and their order."""

import random
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from metaformer.data.augment import train_transform
from metaformer.data.dataset import AugmentedDataset, Item, seeded
from metaformer.data.folder import ImageFolder
from metaformer.data.sampler import EvalSampler, Sample, TrainSampler, permutation, sample_seed
from metaformer.errors import BadImage, ConfigError, DataError
from metaformer.models.detection.structures import Targets
from metaformer.tasks.detection.dataset import DetectionDataset, open_detection
from metaformer.tasks.detection.transforms import train_transform as detection_transform
from metaformer.tasks.segmentation.dataset import SegmentationDataset, open_segmentation
from metaformer.tasks.segmentation.transforms import train_transform as segmentation_transform
from warm import python

PIPELINES: dict[str, dict[str, Any]] = {
    "paper": {},
    "plain": {"auto_augment": None, "erase": 0.0, "interpolation": "bicubic"},
    "augmix": {"auto_augment": "augmix-m5-w4-d2", "aug_splits": 3},
    "autoaugment": {"auto_augment": "original", "erase_mode": "rand", "erase": 1.0, "vflip": 0.5},
}


Open = Callable[[int], AugmentedDataset]


def pets_dataset(own_pets: Path, seed: int = 0, **options: object) -> AugmentedDataset:
    return AugmentedDataset(ImageFolder(own_pets, "train"), train_transform(32, **options), seed)


def pairs_dataset(labeled: Path, seed: int = 0) -> SegmentationDataset:
    transform = segmentation_transform(16, (40, 24))
    return SegmentationDataset(open_segmentation(labeled, "train"), transform, seed)


def scenes_dataset(objects: Path, seed: int = 0, masks: bool = True) -> DetectionDataset:
    transform = detection_transform(jitter=(0.5, 2.0), crop=24, photometric=True)
    return DetectionDataset(open_detection(objects, "train", masks=masks), transform, seed, masks=masks)


@pytest.fixture(params=[*PIPELINES, "segmentation", "detection", "boxes"])
def open_dataset(request: pytest.FixtureRequest) -> Open:
    """Open the training data of each task with a seed."""
    match request.param:
        case "segmentation":
            return partial(pairs_dataset, request.getfixturevalue("labeled"))
        case "detection" | "boxes" as kind:
            return partial(scenes_dataset, request.getfixturevalue("objects"), masks=kind == "detection")
        case name:
            return partial(pets_dataset, request.getfixturevalue("own_pets"), **PIPELINES[name])


def tensors(item: Item) -> list[Tensor]:
    image, target, _ = item
    if isinstance(target, Targets):
        return [image, *(value for value in vars(target).values() if value is not None)]
    return [image, torch.as_tensor(target)]


def equal(item: Item, other: Item) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(item), tensors(other), strict=True))


def test_a_sample_is_a_function_of_seed_and_key(open_dataset: Open) -> None:
    data = open_dataset(0)
    keys = [Sample(epoch, index, repeat) for epoch in (0, 1) for index in (0, 3) for repeat in (0, 1)]
    first = {key: data[key] for key in keys}
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    again = open_dataset(0)
    for key in reversed(keys):
        assert equal(again[key], first[key]) and again[key][2] == key.index
    items = list(first.values())
    for i, one in enumerate(items):
        assert not any(torch.equal(one[0], other[0]) for other in items[:i])
    assert not torch.equal(open_dataset(1)[keys[0]][0], items[0][0])


def test_the_runs_random_streams_are_left_alone(open_dataset: Open) -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(()).item()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draws(), draws()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    before = draws()
    open_dataset(0)[Sample(0, 0)]
    assert (before, draws()) == expected


def test_a_sample_has_label_and_index(own_pets: Path) -> None:
    data = pets_dataset(own_pets)
    assert len(data) == 12
    assert [data[Sample(0, i)][1:] for i in range(12)] == [(i // 4, i) for i in range(12)]


def test_masks_are_optional(objects: Path) -> None:
    for masks in (False, True):
        targets = scenes_dataset(objects, masks=masks)[Sample(0, 0)][1]
        assert isinstance(targets, Targets) and (targets.masks is not None) == masks


def test_seeded_is_pure_and_reaches_all_three() -> None:
    def draws(seed: int) -> tuple[float, float, float]:
        with seeded(seed):
            return random.random(), np.random.rand(), torch.rand(()).item()

    assert draws(1) == draws(1)
    assert all(a != b for a, b in zip(draws(1), draws(2**64 - 1), strict=True))
    assert all(a != b for a, b in zip(draws(1), draws(1 + (1 << 40)), strict=True))


def test_streams_come_back_after_an_error() -> None:
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    with pytest.raises(ZeroDivisionError), seeded(5):
        1 / 0  # noqa: B018
    assert torch.equal(torch.rand(()), expected)


def test_a_bad_image_is_named(own_pets: Path, labeled: Path, objects: Path) -> None:
    bad = own_pets / "train/bee/1.png"
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(BadImage, match=str(bad)):
        pets_dataset(own_pets)[Sample(0, 5)]
    Image.new("L", (24, 21)).save(labeled / "annotations/train/2.png")
    with pytest.raises(BadImage, match=r"2\.png: is 24x21 and its image .*images/train/2\.png 24x22"):
        pairs_dataset(labeled)[Sample(0, 2)]
    Image.new("RGB", (24, 17)).save(objects / "train2017/1.png")
    with pytest.raises(BadImage, match=r"1\.png"):
        scenes_dataset(objects)[Sample(0, 0)]


SEEDS = st.integers(0, 2**32)


@given(st.integers(1, 300), SEEDS, st.integers(0, 50))
def test_permutation_is_one(length: int, seed: int, epoch: int) -> None:
    order = permutation(length, seed, epoch).tolist()
    assert sorted(order) == list(range(length))
    assert order == permutation(length, seed, epoch).tolist()


def test_permutations_differ_and_are_even() -> None:
    orders = [tuple(permutation(50, seed, epoch).tolist()) for seed in range(10) for epoch in range(10)]
    assert len(set(orders)) == 100
    firsts = Counter(int(permutation(10, 0, epoch)[0]) for epoch in range(5000))
    assert min(firsts.values()) > 400 and max(firsts.values()) < 600
    first, second = zip(*(permutation(2, 7, epoch).tolist() for epoch in range(1000)), strict=True)
    assert 430 < sum(first) < 570 and sum(second) == 1000 - sum(first)


def test_order_is_pinned() -> None:
    """A changed order would silently break the resuming of older runs."""
    assert permutation(8, 42, 3).tolist() == [0, 1, 5, 7, 3, 4, 2, 6]
    assert sample_seed(42, Sample(1, 2, 3)) == 4591807362961508349
    sampler = TrainSampler(8, batch_size=2, seed=42, groups=[0, 1, 0, 0, 1, 0, 1, 0])
    sampler.seek(3)
    assert [[s.index for s in batch] for batch in sampler] == [[0, 5], [7, 3], [1, 4], [2, 6]]


Layout = dict[str, Any]
EPOCHS = st.integers(0, 9)


@st.composite
def layouts(draw: st.DrawFn, grouped: bool | None = None) -> Layout:
    """Arguments of a sampler, for one process; with or without groups."""
    world, accumulate = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    batch = world * accumulate * draw(st.integers(1, 4))
    layout: Layout = {
        "batch_size": batch,
        "seed": draw(SEEDS),
        "world": world,
        "accumulate": accumulate,
        "repeated_aug": draw(st.integers(1, 4)),
    }
    if draw(st.booleans()) if grouped is None else grouped:
        group = st.integers(0, draw(st.integers(0, 3)))
        groups = draw(st.lists(group, min_size=batch, max_size=200))
        return {**layout, "length": len(groups), "groups": groups}
    return {**layout, "length": draw(st.integers(batch, 300)), "groups": None}


def ranks(layout: Layout, epoch: int, start: int = 0) -> list[list[list[Sample]]]:
    """Batches of an epoch on each rank."""
    batches = []
    for rank in range(layout["world"]):
        sampler = TrainSampler(rank=rank, **layout)
        sampler.seek(epoch, start)
        batches.append(list(sampler))
        assert len(sampler) == len(batches[-1])
    return batches


def steps_of(layout: Layout, epoch: int) -> list[list[Sample]]:
    return ranks({**layout, "world": 1, "accumulate": 1}, epoch)[0]


@given(layouts(), EPOCHS)
def test_epoch(layout: Layout, epoch: int) -> None:
    batches, length = ranks(layout, epoch), layout["length"]
    steps = length // layout["batch_size"]
    size = layout["batch_size"] // (layout["world"] * layout["accumulate"])
    for own in batches:
        assert len(own) == steps * layout["accumulate"]
        assert all(len(batch) == size for batch in own)
    samples = [sample for own in batches for batch in own for sample in batch]
    assert len(samples) == len(set(samples)) == steps * layout["batch_size"]
    assert all(s.epoch == epoch and 0 <= s.index < length for s in samples)
    uses = Counter(s.index for s in samples)
    # whole groups of copies but for the one that the epoch's end cuts
    assert sum(count != layout["repeated_aug"] for count in uses.values()) <= 1
    assert all(s.repeat < layout["repeated_aug"] for s in samples)


@given(layouts(), EPOCHS)
def test_a_step_holds_the_same_samples_on_any_number_of_ranks(layout: Layout, epoch: int) -> None:
    many, k = ranks(layout, epoch), layout["accumulate"]
    for number, step in enumerate(steps_of(layout, epoch)):
        parts = [micro for own in many for micro in own[number * k : (number + 1) * k]]
        assert sorted(sample for micro in parts for sample in micro) == sorted(step)
        if layout["groups"]:  # only micro-batches at a border of two groups are mixed
            groups = [{layout["groups"][sample.index] for sample in micro} for micro in parts]
            borders = len({layout["groups"][sample.index] for sample in step}) - 1
            assert sum(len(group) > 1 for group in groups) <= borders


@given(layouts(), EPOCHS, st.data())
def test_resuming_gives_the_rest(layout: Layout, epoch: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, layout["length"] // layout["batch_size"]))
    whole, rest = ranks(layout, epoch), ranks(layout, epoch, start)
    for full, part in zip(whole, rest, strict=True):
        assert full[start * layout["accumulate"] :] == part


@given(layouts(grouped=True), EPOCHS)
def test_an_epoch_of_groups_has_the_samples_of_one_without(layout: Layout, epoch: int) -> None:
    expected, found = steps_of({**layout, "groups": None}, epoch), steps_of(layout, epoch)
    groups = layout["groups"]
    assert sorted(s for step in found for s in step) == sorted(s for step in expected for s in step)
    held = Counter(groups[sample.index] for step in found for sample in step)
    own = [[groups[sample.index] for sample in step] for step in found]
    assert all(step == sorted(step) for step in own)
    uniform = sum(len(set(step)) == 1 for step in own)
    assert uniform >= sum(count // layout["batch_size"] for count in held.values())


def test_epochs_of_groups_differ_and_a_small_group_comes_as_often_as_others() -> None:
    groups = [1 if index % 20 == 0 else 0 for index in range(101)]
    sampler, uses, first = TrainSampler(101, batch_size=16, groups=groups), Counter[int](), set()
    for epoch in range(400):
        sampler.seek(epoch)
        steps = list(sampler)
        first.add(steps[0][0].index)
        uses.update(sample.index for step in steps for sample in step)
    assert len(first) > 50
    assert min(uses.values()) > 400 * 96 / 101 * 0.94


def test_copies_go_to_different_ranks() -> None:
    layout = {"length": 240, "batch_size": 24, "seed": 1, "world": 4, "accumulate": 1, "repeated_aug": 3}
    places: dict[int, set[int]] = {}
    for rank, own in enumerate(ranks(layout, 0)):
        for sample in (s for batch in own for s in batch):
            places.setdefault(sample.index, set()).add(rank)
    assert len(places) == 80 and all(len(on) == 3 for on in places.values())


def test_iterating_again_starts_at_the_same_position() -> None:
    sampler = TrainSampler(10, batch_size=2, seed=3)
    assert list(sampler) == list(sampler)
    first = list(sampler)
    sampler.seek(1)
    assert list(sampler) != first


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -4}, "batch_size is -4"),
        ({"batch_size": 4, "repeated_aug": 0}, "repeated_aug is 0"),
        ({"batch_size": 4, "accumulate": 0}, "accumulate is 0"),
        ({"batch_size": 4, "world": 3}, "multiple of 3"),
        ({"batch_size": 4, "world": 2, "rank": 2}, "rank 2"),
        ({"batch_size": 4, "world": 0}, "rank 0"),
    ],
)
def test_impossible_layouts(options: dict[str, int], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        TrainSampler(100, **options)


def test_too_few_images_and_steps_out_of_range() -> None:
    with pytest.raises(DataError, match="5 training images do not fill one batch of 8"):
        TrainSampler(5, batch_size=8)
    sampler = TrainSampler(20, batch_size=8)
    sampler.seek(4, 2)
    assert list(sampler) == []
    with pytest.raises(ConfigError, match="step 3 of epoch 4"):
        sampler.seek(4, 3)


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 5))
def test_evaluation_has_each_image_once(length: int, batch_size: int, world: int) -> None:
    indices = []
    for rank in range(world):
        sampler = EvalSampler(length, batch_size=batch_size, rank=rank, world=world)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        own = [sample.index for batch in batches for sample in batch]
        assert own == sorted(own) and all(len(batch) <= batch_size for batch in batches)
        indices += own
    assert sorted(indices) == list(range(length))


@given(st.tuples(SEEDS, *[st.integers(0, 2**31)] * 3), st.tuples(SEEDS, *[st.integers(0, 2**31)] * 3))
def test_seeds_differ(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    one, other = (sample_seed(values[0], Sample(*values[1:])) for values in (a, b))
    assert 0 <= one < 2**64
    assert (one == other) == (a == b)


def test_seed_bits_are_mixed() -> None:
    seeds = [sample_seed(0, Sample(e, i, r)) for e in range(10) for i in range(100) for r in range(3)]
    assert len(set(seeds)) == 3000
    for bit in range(64):
        assert 0.46 < sum(seed >> bit & 1 for seed in seeds) / 3000 < 0.54
    flips = [
        (sample_seed(0, Sample(0, i)) ^ sample_seed(0, Sample(0, i ^ 1))).bit_count() for i in range(1000)
    ]
    assert 30 < sum(flips) / 1000 < 34


def test_seed_is_the_same_in_another_process() -> None:
    code = (
        "from metaformer.data.sampler import *; print(sample_seed(5, Sample(1, 2, 3)), permutation(9, 5, 1))"
    )
    done = subprocess.run([*python(), "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{sample_seed(5, Sample(1, 2, 3))} {permutation(9, 5, 1)}\n"


def test_balanced_epochs_have_every_class_equally_often() -> None:
    classes = [0] * 80 + [1] * 15 + [2] * 5
    options: dict[str, Any] = {"batch_size": 10, "seed": 3, "classes": classes}
    sampler, seen = TrainSampler(100, **options), set[Sample]()
    for epoch in range(3):
        sampler.seek(epoch)
        samples = [sample for batch in sampler for sample in batch]
        counts = [sum(classes[sample.index] == k for sample in samples) for k in range(3)]
        assert len(samples) == 100 and sorted(counts) == [33, 33, 34]
        assert len(set(samples)) == 100, "an image that comes again is augmented anew"
        assert {sample.index for sample in samples if classes[sample.index] == 2} == set(range(95, 100))
        first = [classes[sample.index] for sample in samples[:30]]
        assert all(5 <= first.count(k) <= 16 for k in range(3)), "shuffled"
        seen |= set(samples)
    assert len({sample.index for sample in seen if classes[sample.index] == 0}) > 50, "others in other epochs"
    whole = [sample for batch in sampler for sample in batch]
    parts = [[s for batch in TrainSampler(100, rank=r, world=2, **options) for s in batch] for r in range(2)]
    again = TrainSampler(100, **options)
    assert (
        sorted(parts[0] + parts[1]) == sorted(sample for batch in again for sample in batch) != sorted(whole)
    )
