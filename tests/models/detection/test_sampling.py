"""Which boxes the losses look at."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from metaformer.models.detection.sampling import Sampler


@given(
    matches=st.lists(st.integers(-2, 4), max_size=60),
    size=st.integers(0, 40),
    share=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_samples_are_of_their_kind_sorted_once_each_and_as_many_as_fit(
    matches: list[int], size: int, share: float, seed: int
) -> None:
    torch.manual_seed(seed)
    found = Sampler(size, share)(torch.tensor(matches, dtype=torch.int64))
    positives, negatives = (indices.tolist() for indices in found)
    assert all(matches[i] >= 0 for i in positives) and all(matches[i] == -1 for i in negatives)
    assert positives == sorted(set(positives)) and negatives == sorted(set(negatives))
    assert len(positives) == min(int(size * share), sum(match >= 0 for match in matches))
    assert len(negatives) == min(size - len(positives), matches.count(-1))


def test_the_draw_follows_torchs_generator() -> None:
    matches = torch.arange(1000) % 3 - 1
    torch.manual_seed(1)
    first = Sampler(64, 0.5)(matches)
    second = Sampler(64, 0.5)(matches)
    torch.manual_seed(1)
    again = Sampler(64, 0.5)(matches)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], second[0])


def test_nothing_is_drawn_where_everything_fits() -> None:
    before = torch.get_rng_state()
    positives, negatives = Sampler(1_000_000, 0.5)(torch.tensor([0, -1, -2, 3]))
    assert positives.tolist() == [0, 3] and negatives.tolist() == [1]
    assert torch.equal(torch.get_rng_state(), before)
