import torch

from metaformer.distributed import all_gather_list, all_reduce_sum, rank, world_size


def test_one_process_sums_nothing() -> None:
    assert (rank(), world_size()) == (0, 1)
    assert int(all_reduce_sum(torch.tensor(3))) == 3
    assert all_gather_list(["a"]) == ["a"]
