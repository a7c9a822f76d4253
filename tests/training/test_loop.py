from metaformer.data.sampler import PureSampler
from metaformer.training.loop import RemainingBatches


def test_the_rest_of_a_run_is_the_whole_run_from_there() -> None:
    def batches(first: int) -> list[object]:
        sampler = PureSampler(22, batch_size=4, seed=3, repeated_aug=2, accumulate=2)
        rest = RemainingBatches(sampler, first, 3 * sampler.steps)
        found = list(rest)
        assert len(found) == len(rest)
        return found

    whole = batches(0)
    assert len(whole) == 3 * 5 * 2
    for first in (1, 5, 7, 14, 15):
        assert batches(first) == whole[2 * first :]
    assert {sample.epoch for batch in whole for sample in batch} == {0, 1, 2}
