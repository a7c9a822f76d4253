import logging
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from metaformer.config import RuntimeConfig
from metaformer.distributed import World, is_sharded, join, local
from metaformer.training.ddp import DataParallel
from metaformer.training.trainer import build_parallel

SYNC = RuntimeConfig(sync_batch_norm=True)


def net(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4) if norm else nn.Identity())


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_single_device_holds_the_whole_model(parallel: str) -> None:
    runtime = RuntimeConfig(parallel=parallel, sync_batch_norm=True)  # type: ignore[arg-type]
    single, model = build_parallel(runtime, World()), net()
    assert type(single) is DataParallel and not single.sharded
    assert single.wrap(model) is model and type(model[1]) is nn.BatchNorm1d
    assert isinstance(single.gradient_sync(model, last=False), nullcontext)
    model(torch.ones(2, 4)).sum().backward()
    parameters = list(model.parameters())
    grads = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    torch.testing.assert_close(single.gradient_norm(parameters), grads.norm())
    single.broadcast_buffers(model)
    with single.summon_full_params(model):
        state = single.full_state_dict(model)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not is_sharded(state["0.weight"]) and local(state["0.weight"]) is state["0.weight"]


def check_rank() -> None:
    world = join("cpu")
    ddp, model = build_parallel(SYNC, world), net()
    wrapped = ddp.wrap(model)
    assert isinstance(wrapped, DistributedDataParallel) and type(model[1]) is nn.BatchNorm1d
    weight, batch_norm = model[0].weight, model[1]

    def gathered(tensor: torch.Tensor) -> list[torch.Tensor]:
        tensors = [torch.empty_like(tensor) for _ in range(2)]
        torch.distributed.all_gather(tensors, tensor)
        return tensors

    # gradients are reduced with the last micro-batch only
    batches = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(world.rank))
    for last in (False, True):
        with ddp.gradient_sync(wrapped, last):
            wrapped(batches[int(last)]).square().sum().backward()
        assert torch.equal(*gathered(weight.grad.clone())) == last

    # running statistics differ until those of rank 0 are broadcast
    first, own = gathered(batch_norm.running_mean)
    assert not torch.equal(first, own)
    ddp.broadcast_buffers(model)
    assert torch.equal(batch_norm.running_mean, first)
    assert bool(ddp.full_state_dict(model)) == world.main


def test_two_ranks_reduce_gradients_and_broadcast_buffers(two_ranks: Callable[..., list[str]]) -> None:
    two_ranks(check_rank)


@pytest.mark.parametrize(("rank", "norm", "warns"), [(0, True, True), (0, False, False), (1, True, False)])
def test_rank_0_warns_of_batch_norm_that_is_not_synchronized(
    rank: int, norm: bool, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        DataParallel(SYNC, World(rank, rank, 2))._convert_sync_batch_norm(net(norm))
    assert ("runtime.sync_batch_norm" in caplog.text) == warns


def test_batch_norm_is_converted_for_cuda() -> None:
    model = net()
    world = World(0, 0, 2, torch.device("cuda:0"))  # the conversion itself needs none
    DataParallel(SYNC, world)._convert_sync_batch_norm(model)
    assert type(model[1]) is nn.SyncBatchNorm
    assert model.state_dict().keys() == net().state_dict().keys()
