import pytest
import torch

from metaformer.distributed import World, all_gather_list, all_reduce_sum, find_device, join, rank, world_size
from metaformer.errors import ConfigError


def test_one_process_needs_no_group() -> None:
    world = join("cpu")
    assert world == World() and world.main and (rank(), world_size()) == (0, 1)
    assert not torch.distributed.is_initialized()
    assert int(all_reduce_sum(torch.tensor(3))) == 3 and all_gather_list(["a"]) == ["a"]


@pytest.mark.parametrize("name", ["gpu", "tpu", "meta", "cuda:99", ""])
def test_a_missing_device_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        find_device(name)


@pytest.mark.parametrize("name", ["mps", "mps:0", "xpu"])
def test_a_device_of_another_kind_is_a_clear_no(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device: '{name}' is not supported, only cpu and CUDA's"):
        find_device(name)


def test_auto_is_the_best_device() -> None:
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert find_device("cpu") == torch.device("cpu")
