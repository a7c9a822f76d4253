"""Training on several processes: DDP and FSDP."""

import json
import logging
import resource
import shutil
import signal
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metaformer.checkpoint.checkpoint import (
    pack_optimizer,
    read_checkpoint,
    restore_optimizer,
    write_checkpoint,
)
from metaformer.checkpoint.run_dir import read_log
from metaformer.config import OptimConfig, RuntimeConfig, TrainConfig
from metaformer.distributed import World, is_sharded, join, local
from metaformer.errors import OutputError
from metaformer.factory import create_model
from metaformer.inference.evaluate import evaluate
from metaformer.serialize import from_dict, to_dict
from metaformer.training.ddp import DataParallel
from metaformer.training.ema import Ema
from metaformer.training.optim import build_optimizer
from metaformer.training.train import train
from metaformer.training.trainer import build_parallel
from toys import Configure

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


Ranks = Callable[..., list[str]]
SHARDED = RuntimeConfig(device="cpu", parallel="fsdp")


def sharded_net(norm: str = "group_norm") -> nn.Module:
    """Four kinds of mixer, one with a frozen parameter, and a head with fewer rows than ranks."""
    torch.manual_seed(0)
    return create_model(
        "poolformer_n",
        num_classes=1,
        depths=(1, 1, 1, 1),
        dims=(8, 8, 16, 16),
        mixers=("pooling", "dwconv", "random", "attention(head_dim=8)"),
        image_size=(32, 32),
        norm=norm,
    )


IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def learn(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, steps: int, scale: float
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        (model(images).square().mean() * scale).backward()
        optimizer.step()


def check_sharded_rank(folder: str) -> None:
    torch.set_num_threads(1)
    world = join("cpu")
    own = IMAGES[world.rank * 4 : world.rank * 4 + 4]
    for name in ("sgd", "adamw", "lamb"):
        check_optimizer(name, world, own)
    model, ema = check_state(world, own)
    check_checkpoint(Path(folder), world, model, ema)


def check_optimizer(name: str, world: World, own: Tensor) -> None:
    """A sharded model learns as an unsharded one; the loss is so large that LAMB clips."""
    # some gradients are rounding errors, which a small eps would amplify
    config = OptimConfig(name=name, lr=1e-2, eps=1e-2)  # type: ignore[arg-type]
    whole, model, fsdp = sharded_net(), sharded_net(), build_parallel(SHARDED, world)
    assert fsdp.wrap(model) is model and fsdp.sharded and all(map(is_sharded, model.parameters()))
    learn(whole, one := build_optimizer(config, whole), IMAGES, 3, 100.0)
    learn(model, build_optimizer(config, model), own, 3, 100.0)
    norm = fsdp.gradient_norm(model.parameters())
    assert norm > 1
    torch.testing.assert_close(norm, torch.nn.utils.get_total_norm([
        p.grad for g in one.param_groups for p in g["params"]
    ]), rtol=1e-4, atol=0.0)  # fmt: skip
    state = fsdp.full_state_dict(model)
    assert bool(state) == world.main
    for key, value in state.items():
        expected = whole.state_dict()[key].float()  # by norms: rounding moves single numbers near 0 far
        assert (value - expected).norm() <= 2e-3 * expected.norm() + 1e-4, f"{name} {key}"


def check_state(world: World, own: Tensor) -> tuple[nn.Module, nn.Module]:
    fsdp, model = build_parallel(SHARDED, world), sharded_net("batch_norm")
    ema = Ema(model, 0.5)
    fsdp.shard(ema.model)
    before = {name: value.clone() for name, value in fsdp.full_state_dict(ema.model).items()}
    fsdp.wrap(model)
    optimizer = build_optimizer(OptimConfig(name="sgd", lr=0.1), model)

    # gradients are reduced with the last micro-batch only
    for last in (False, True):
        with fsdp.gradient_sync(model, last):
            model(own).square().mean().backward()
        assert all((p.grad is not None) == last for p in model.parameters() if p.requires_grad)
    optimizer.step()
    ema.update(model)
    after, now = fsdp.full_state_dict(ema.model), fsdp.full_state_dict(model)
    for name, value in before.items():
        if value.is_floating_point() and world.main:
            torch.testing.assert_close(after[name], (value + now[name]) / 2)

    # each rank runs the full model as often as it has batches, and then all together again
    for one in (model, ema.model):
        one.eval()
        with fsdp.summon_full_params(one), torch.no_grad():
            outputs = [one(IMAGES[:2]) for _ in range(1 + 3 * world.rank)]
        assert torch.equal(outputs[0], outputs[-1])
        assert all(map(is_sharded, one.parameters()))
        torch.testing.assert_close(one(IMAGES[:2]), outputs[0])
    return model, ema.model


def check_checkpoint(folder: Path, world: World, model: nn.Module, average: nn.Module) -> None:
    optimizer = build_optimizer(OptimConfig(lr=0.1), model)
    model.train()
    learn(model, optimizer, IMAGES[:4], 2, 1.0)
    build_parallel(SHARDED, world).broadcast_buffers(model, average)
    tensors, plain = pack_optimizer(optimizer)
    groups = {"plain": {"x": torch.arange(3)}, "model": model.state_dict(), "optimizer": tensors}
    target = write_checkpoint(folder / "step_1", groups, {"optimizer": plain})

    # loaded into shards of a model and an optimizer that have changed since
    weights = {name: local(value).clone() for name, value in model.state_dict().items()}
    moments = {name: local(value).clone() for name, value in tensors.items()}
    learn(model, optimizer, IMAGES[:4], 1, 1.0)
    saved = read_checkpoint(target)
    saved.load(model)
    restore_optimizer(optimizer, saved)
    assert all(torch.equal(local(value), weights[name]) for name, value in model.state_dict().items())
    again, _ = pack_optimizer(optimizer)
    assert all(torch.equal(local(value), moments[name]) for name, value in again.items())
    assert torch.equal(saved.tensors("plain")["x"], torch.arange(3))

    # the last rank cannot write
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with ExitStack() as stack:
        if world.rank == 1:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (hard, hard))
        stack.enter_context(
            pytest.raises(OutputError, match=r"step_2: cannot write \(File too large, rank 1")
        )
        write_checkpoint(folder / "step_2", groups, {})


def test_a_sharded_model_learns_and_is_saved_as_an_unsharded_one(two_ranks: Ranks, tmp_path: Path) -> None:
    two_ranks(check_sharded_rank, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]
    saved, model = read_checkpoint(tmp_path / "step_1"), sharded_net("batch_norm")
    saved.load(model)
    whole = saved.tensors("model")
    assert all(torch.equal(value, whole[name]) for name, value in model.state_dict().items())
    optimizer = build_optimizer(OptimConfig(lr=0.1), model)
    restore_optimizer(optimizer, saved)
    again, _ = pack_optimizer(optimizer)
    assert all(torch.equal(value, saved.tensors("optimizer")[name]) for name, value in again.items())


def runs(jobs: str) -> None:
    torch.set_num_threads(1)
    for job in json.loads(jobs):
        train(from_dict(TrainConfig, job["config"]), job["out"], job["resume"])


def job(config: TrainConfig, out: Path, resume: str | None = None) -> dict[str, Any]:
    return {"config": to_dict(config), "out": str(out), "resume": resume}


def cut_back(run: Path, to: int) -> None:
    """Remove the checkpoints after a step."""
    for folder in (run / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step_")) > to:
            shutil.rmtree(folder)


def digest(run: Path, step: int = 6) -> dict[str, Tensor]:
    saved = read_checkpoint(run / "checkpoints" / f"step_{step}")
    return {
        f"{name}:{key}": value
        for name in ("model", "ema", "optimizer")
        for key, value in saved.tensors(name).items()
    }


def test_an_fsdp_run_equals_one_process_and_resumes_exactly(
    configure: Configure, tmp_path: Path, two_ranks: Ranks
) -> None:
    def config(**runtime: Any) -> TrainConfig:
        return configure(
            optim={"name": "sgd", "lr": 1e-2, "accumulate": 2, "clip": 0.5},
            data={"batch_size": 8, "eval_batch_size": 2},  # 15 images: one rank has a batch more
            model={"overrides": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "layer_scale": [None] * 4}},
            ema={"decay": 0.8},
            runtime={"save_every": 1, **runtime},
        )

    one, two, again, back, over = (tmp_path / name for name in ("one", "two", "again", "back", "over"))
    train(config(), one)
    two_ranks(runs, json.dumps([job(config(parallel="fsdp"), two)]))
    expected, uninterrupted = digest(one), digest(two)
    for name, value in expected.items():
        torch.testing.assert_close(uninterrupted[name], value, rtol=1e-4, atol=1e-5)
    losses = [
        [line["loss"] for line in read_log(run) if line["kind"] in ("train", "eval")] for run in (one, two)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    step = two / "checkpoints" / "step_6"
    assert len(list(step.glob("model/*.safetensors"))) == 2
    # `best` is not sharded, and a sharded checkpoint can be evaluated too
    assert {path.name for path in (two / "best").iterdir() if path.suffix == ".safetensors"} == {
        "model.safetensors"
    }
    last = read_log(two)[-1]
    measured = evaluate(step, workers=0, device="cpu")
    assert measured.top1 == last["top1"] and measured.loss == pytest.approx(last["loss"], rel=1e-5)

    # resumes in new processes, from the checkpoint of one process, and in one process from that of two
    for source, target in ((two, again), (two, back), (one, over)):
        shutil.copytree(source, target)
        cut_back(target, 4)
    jobs = [job(config(parallel="fsdp"), run, "auto") for run in (again, over)]
    two_ranks(runs, json.dumps(jobs))
    resumed = digest(again)
    assert all(torch.equal(resumed[name], value) for name, value in uninterrupted.items())
    train(config(), back, "auto")
    for other in (digest(over), digest(back)):
        for name, value in expected.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_what_autocast_does_not_cast_is_gathered_in_its_own_dtype(amp: str) -> None:
    from metaformer.training.fsdp import FullyShardedParallel

    fsdp = FullyShardedParallel.__new__(FullyShardedParallel)
    fsdp.runtime = RuntimeConfig(amp=amp)  # type: ignore[arg-type]
    model = sharded_net()
    policy = fsdp._mixed_precision(model)
    assert not policy.cast_forward_inputs
    own_dtype = getattr(policy, "param_dtype_override_fn", None)
    if own_dtype is None:  # PyTorch before 2.15
        assert policy.param_dtype is None
        return
    assert policy.reduce_dtype == torch.float32
    low = {name for name, value in model.named_parameters() if own_dtype(value) is None}
    assert "stages.0.blocks.0.mlp.fc1.weight" in low and "stages.0.blocks.0.norm1.weight" not in low
    assert not any("scale" in name or "norm" in name for name in low)
