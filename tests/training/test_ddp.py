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


def net(norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4) if norm else nn.Identity())


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_device_has_the_whole_model(parallel: str) -> None:
    runtime = RuntimeConfig(parallel=parallel, sync_batch_norm=True)  # type: ignore[arg-type]
    alone, model = build_parallel(runtime, World()), net()
    assert type(alone) is DataParallel and not alone.sharded
    assert alone.wrap(model) is model and type(model[1]) is nn.BatchNorm1d  # type: ignore[index]
    assert isinstance(alone.gradient_sync(model, last=False), nullcontext)
    model(torch.ones(2, 4)).sum().backward()
    parameters = list(model.parameters())
    grads = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    torch.testing.assert_close(alone.gradient_norm(parameters), grads.norm())
    alone.broadcast_buffers(model)
    with alone.summon_full_params(model):
        state = alone.full_state_dict(model)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not is_sharded(state["0.weight"]) and local(state["0.weight"]) is state["0.weight"]


def two_copies() -> None:
    world = join("cpu")
    copies = build_parallel(RuntimeConfig(sync_batch_norm=True), world)
    model = net()
    wrapped = copies.wrap(model)
    assert isinstance(wrapped, DistributedDataParallel)
    assert type(model[1]) is nn.BatchNorm1d  # type: ignore[index]

    # gradients are exchanged with the last micro-batch, once
    batches = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(world.rank))
    with copies.gradient_sync(wrapped, last=False):
        wrapped(batches[0]).square().sum().backward()
    own = model[0].weight.grad.clone()  # type: ignore[index]
    told: list[torch.Tensor] = [torch.empty_like(own) for _ in range(2)]
    torch.distributed.all_gather(told, own)
    assert not torch.equal(*told)
    with copies.gradient_sync(wrapped, last=True):
        wrapped(batches[1]).square().sum().backward()
    torch.distributed.all_gather(told, model[0].weight.grad)  # type: ignore[index]
    assert torch.equal(*told)

    # each has its own running statistics till the first one's are taken
    mean = dict(model.named_buffers())["1.running_mean"]
    torch.distributed.all_gather(told := [torch.empty_like(mean) for _ in range(2)], mean)
    assert not torch.equal(*told)
    copies.broadcast_buffers(model)
    assert torch.equal(mean, told[0])
    assert bool(copies.full_state_dict(model)) == world.main


def test_two_devices_average_gradients_and_keep_the_first_ones_statistics(
    two_ranks: Callable[..., list[str]],
) -> None:
    two_ranks(two_copies)


@pytest.mark.parametrize(("rank", "norm", "said"), [(0, True, True), (0, False, False), (1, True, False)])
def test_batch_norm_that_stays_apart_is_said_aloud(
    rank: int, norm: bool, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        copies = DataParallel(RuntimeConfig(sync_batch_norm=True), World(rank, rank, 2))
        copies._convert_sync_batch_norm(net(norm))
    assert ("on the CPU each of the 2 processes normalizes by its own images" in caplog.text) == said


def test_batch_norm_is_converted_for_cuda() -> None:
    model = net()
    world = World(0, 0, 2, torch.device("cuda:0"))  # the conversion itself needs none
    DataParallel(RuntimeConfig(sync_batch_norm=True), world)._convert_sync_batch_norm(model)
    assert type(model[1]) is nn.SyncBatchNorm  # type: ignore[index]
    assert model.state_dict().keys() == net().state_dict().keys()
