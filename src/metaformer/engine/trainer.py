"""One optimiser step after another: weights, average, optimiser and scaler, and what is random in them."""

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metaformer.data.loader import Batch
from metaformer.data.sampler import hash64
from metaformer.engine.checkpoint import Saved, pack_optimizer, unpack_optimizer
from metaformer.engine.config import TrainConfig
from metaformer.engine.distributed import World
from metaformer.engine.ema import Ema
from metaformer.engine.optim import build_optimizer, set_learning_rate
from metaformer.engine.schedule import Schedule
from metaformer.errors import TrainingError
from metaformer.tasks.task import Moment, Task

PRECISIONS = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> AbstractContextManager[object]:
    """Mixed precision of this name (`none`, `bf16`, `fp16`) on this device."""
    dtype = PRECISIONS[amp]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


class Trainer:
    """The changing part of a run.

    The random numbers of a step (dropout, stochastic depth) are a function of seed, step and rank, so that
    no generator's state has to be carried from one process to the next.
    """

    def __init__(self, config: TrainConfig, task: Task, schedule: Schedule, world: World) -> None:
        self.config, self.task, self.schedule, self.world = config, task, schedule, world
        self.step = 0
        self.ema = None if config.ema.decay is None else Ema(task.model, config.ema.decay)
        self.optimizer = build_optimizer(config.optim, task.model)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.runtime.amp == "fp16")
        self.model = _wrapped(task.model, config.runtime.compile, world)

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are measured and published."""
        return self.ema.model if self.ema is not None and self.config.ema.evaluate else self.task.model

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the weights that are measured, in evaluation mode."""
        model = self.evaluated
        training = model.training
        model.eval()
        with autocast(self.world.device, self.config.runtime.amp):
            logits: Tensor = model(images.to(self.world.device, non_blocking=True))
        model.train(training)
        return logits

    def take_step(self, batches: Sequence[Batch], epoch: int) -> dict[str, float]:
        """Learn from one step's micro-batches; gives this process's mean losses and the gradient's norm.

        Raises:
            TrainingError: a loss or gradient is not finite; the weights are as before the step.
        """
        self._seed()
        lr = self.schedule(self.step)
        set_learning_rate(self.optimizer, lr)
        self.model.train()
        sums = self._backward(batches, epoch)
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        figures = {name: float(value) / len(batches) for name, value in sums.items()}
        figures["grad_norm"] = float(norm)
        self._refuse_if_not_finite(figures, batches)
        if self.config.optim.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optim.clip, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.task.model)
        return {**figures, "lr": lr}

    def groups(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Tensors and plain values from which `restore` goes on."""
        tensors, plain = pack_optimizer(self.optimizer)
        groups = {"model": self.task.model.state_dict(), "optimizer": tensors}
        if self.ema is not None:
            groups["ema"] = self.ema.model.state_dict()
        return groups, {"step": self.step, "optimizer": plain, "scaler": self.scaler.state_dict()}

    def restore(self, saved: Saved) -> None:
        """Take over a checkpoint.

        Raises:
            WeightsError: it is of another model, optimiser or average.
        """
        saved.load(self.task.model, "model")
        if self.ema is not None:
            saved.load(self.ema.model, "ema")
        unpack_optimizer(self.optimizer, saved.tensors("optimizer"), saved.state["optimizer"])
        self.scaler.load_state_dict(saved.state["scaler"])
        self.step = int(saved.state["step"])

    def _backward(self, batches: Sequence[Batch], epoch: int) -> dict[str, Tensor]:
        """Add up the gradients of the micro-batches; ranks exchange them once, with the last."""
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            moment = Moment(self.step, epoch, self.world.rank * len(batches) + number)
            placed = Batch(*(part.to(self.world.device, non_blocking=True) for part in batch))
            with self._synchronised(last):
                with autocast(self.world.device, self.config.runtime.amp):
                    losses = self.task.losses(self.model, placed, moment)
                self.scaler.scale(losses["loss"] / len(batches)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach()
        return sums

    def _synchronised(self, last: bool) -> AbstractContextManager[object]:
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    def _refuse_if_not_finite(self, figures: dict[str, float], batches: Sequence[Batch]) -> None:
        loss = bool(np.isfinite(figures["loss"]))
        # in float16 a gradient may overflow: the scaler leaves the step out and scales less
        gradient = self.scaler.is_enabled() or bool(np.isfinite(figures["grad_norm"]))
        if not any(self.world.any(not loss, not gradient)):
            return
        self.optimizer.zero_grad(set_to_none=True)
        names = [name for batch in batches for name in self.task.names(batch)]
        told = self.world.gather(None if loss and gradient else (loss, names))
        what, rank, files = "gradient", self.world.rank, names
        for number, entry in enumerate(told):
            if isinstance(entry, tuple):
                what, rank, files = ("gradient" if entry[0] else "loss"), number, entry[1]
                if not entry[0]:
                    break
        value = figures["loss"] if what == "loss" else figures["grad_norm"]
        where = f"step {self.step}" + (f", rank {rank}" if self.world.size > 1 else "")
        raise TrainingError(
            f"{where}: the {what} is not finite ({value}); weights are untouched. Images: {_some(files)}"
        )

    def _seed(self) -> None:
        seed = hash64(self.config.seed, self.step, self.world.rank)
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        torch.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


def _wrapped(model: nn.Module, compile_: bool, world: World) -> nn.Module:
    wrapped: nn.Module = torch.compile(model) if compile_ else model  # type: ignore[assignment]
    if world.size > 1:
        devices = [world.device.index] if world.device.type == "cuda" else None
        wrapped = DistributedDataParallel(wrapped, device_ids=devices)
    return wrapped


def _some(names: list[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
