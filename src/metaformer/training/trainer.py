"""One optimizer step after another: weights, average, optimizer and scaler, and what is random in them."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from metaformer.checkpoint.checkpoint import Checkpoint, pack_optimizer, restore_optimizer
from metaformer.config import TrainConfig
from metaformer.data.dataset import Batch
from metaformer.data.sampler import hash64
from metaformer.distributed import World, all_gather_object, any_rank
from metaformer.errors import TrainingError
from metaformer.models.base import answer_of, autocast
from metaformer.tasks.base import StepContext, Task
from metaformer.training.build_parallel import build_parallel
from metaformer.training.diagnose import Fault, bad_gradient, bad_weight, watched
from metaformer.training.ema import Ema
from metaformer.training.optim import build_optimizer, set_learning_rate
from metaformer.training.schedule import Schedule


class Refused(TrainingError):
    """A step that is not finite: weights, buffers, average and optimizer are as before it."""


class Trainer:
    """The changing part of a run.

    The random numbers of a step (dropout, stochastic depth) are a function of seed, step and rank, so that
    no generator's state has to be carried from one process to the next.
    """

    def __init__(self, config: TrainConfig, task: Task, schedule: Schedule, world: World) -> None:
        self.config, self.task, self.schedule, self.world = config, task, schedule, world
        self.step = 0
        self.parallel = build_parallel(config.runtime, world)
        self.ema = None if config.ema.decay is None else Ema(task.model, config.ema.decay)
        if self.ema is not None:
            self.parallel.place(self.ema.model)
        self.model = self.parallel.wrap(task.model)
        self.buffers = list(task.model.buffers())
        self.optimizer = build_optimizer(config.optim, task.model)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.runtime.amp == "fp16")

    @property
    def evaluated(self) -> nn.Module:
        """The weights that are measured and published."""
        return self.ema.model if self.ema is not None and self.config.ema.evaluate else self.task.model

    def forward(self, images: Tensor, *sizes: Any) -> Any:
        """Answer of the weights that are measured, in evaluation mode; see `answer_of`."""
        model = self.evaluated
        training = model.training
        model.eval()
        with autocast(self.world.device, self.config.runtime.amp):
            answer = answer_of(model)(images.to(self.world.device, non_blocking=True), *sizes)
        model.train(training)
        return answer

    def take_step(self, batches: Sequence[Batch], epoch: int) -> dict[str, float]:
        """Learn from one step's micro-batches; gives this process's mean losses and the gradient's norm.

        In float16 a gradient may overflow as long as the loss is scaled up: that step is left out, the scale
        halved, and `overflow` is 1 in the figures. Anything else that is not finite is a fault.

        Raises:
            Refused: an input, loss or gradient is not finite, on whatever rank.
        """
        self._seed()
        lr = self.schedule(self.step)
        set_learning_rate(self.optimizer, lr)
        if not self.model.training:  # a walk over all modules
            self.model.train()
        kept = [buffer.clone() for buffer in self.buffers]  # statistics move in the forward pass
        sums = self._backward(batches, epoch)
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = self.parallel.gradient_norm(parameters)
        figures = {name: float(value) / len(batches) for name, value in sums.items()}
        norm_value = float(norm)
        sound = math.isfinite(figures.pop("input")) and math.isfinite(figures["loss"])
        overflow = sound and not math.isfinite(norm_value) and self.scaler.get_scale() > 1
        if any_rank(not (sound and (math.isfinite(norm_value) or overflow)))[0]:
            self._refuse(batches, epoch, kept)
        if self.scaler.is_enabled():
            figures["overflow"] = float(overflow)
        if not overflow:
            figures["grad_norm"] = norm_value
            if self.config.optim.clip is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optim.clip, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.task.model)
        return {**figures, "lr": lr}

    def leave_out(self) -> None:
        """Go on to the next step without having taken this one."""
        self.step += 1

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Around an evaluation: what is measured is the same on every rank, and there as a whole."""
        self._share_buffers()
        with self.parallel.gathered(self.evaluated):
            yield

    def published(self) -> dict[str, Tensor]:
        """The weights that are measured, on the first rank; all ranks must ask."""
        self._share_buffers()
        return self.parallel.whole_state(self.evaluated)

    def groups(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Tensors and plain values from which `restore` goes on; all ranks must ask."""
        self._share_buffers()
        tensors, plain = pack_optimizer(self.optimizer)
        groups = {"model": self.task.model.state_dict(), "optimizer": tensors}
        if self.ema is not None:
            groups["ema"] = self.ema.model.state_dict()
        return groups, {"step": self.step, "optimizer": plain, "scaler": self.scaler.state_dict()}

    def restore(self, saved: Checkpoint) -> None:
        """Take over a checkpoint.

        Raises:
            WeightsError: it is of another model, optimizer or average.
        """
        saved.load(self.task.model, "model")
        if self.ema is not None:
            saved.load(self.ema.model, "ema")
        restore_optimizer(self.optimizer, saved)
        self.scaler.load_state_dict(saved.state["scaler"])
        self.step = int(saved.state["step"])

    def _backward(self, batches: Sequence[Batch], epoch: int) -> dict[str, Tensor]:
        """Add up the gradients of the micro-batches; ranks exchange them once, with the last."""
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            moment = StepContext(self.step, epoch, self.world.rank * len(batches) + number)
            placed = batch.to(self.world.device)
            with self.parallel.synchronized(self.model, last):
                with autocast(self.world.device, self.config.runtime.amp):
                    losses = self.task.losses(self.model, placed, moment)
                self.scaler.scale(losses["loss"] / len(batches)).backward()
            losses["input"] = placed.images.sum()  # one pass; finite only if all of it is
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach()
        return sums

    def _refuse(self, batches: Sequence[Batch], epoch: int, kept: Sequence[Tensor]) -> NoReturn:
        faults = all_gather_object(self._diagnose(batches, epoch, kept))
        self._undo(kept)
        rank = next((number for number, fault in enumerate(faults) if fault is not None), self.world.rank)
        fault = faults[rank] or Fault("gradient", "nowhere when the step was repeated", [])
        where = f"step {self.step}" + (f", rank {rank}" if self.world.size > 1 else "")
        raise Refused(f"{where}: {fault.told()}")

    def _diagnose(self, batches: Sequence[Batch], epoch: int, kept: Sequence[Tensor]) -> Fault | None:
        """Repeat the step on this rank alone, and look where it goes wrong."""
        self._undo(kept)
        self._seed()
        model, found = self.task.model, None
        weight = bad_weight(model)  # looked for before a forward pass brings it into batch norm's statistics
        for number, batch in enumerate(batches):
            files = self.task.names(batch)
            moment = StepContext(self.step, epoch, self.world.rank * len(batches) + number)
            bad = ~batch.images.flatten(1).isfinite().all(dim=1)
            if found is None and bool(bad.any()):
                own = [name for name, wrong in zip(files, bad.tolist(), strict=True) if wrong]
                found = Fault("input", own[0], own)
            with watched(model) as outputs, autocast(self.world.device, self.config.runtime.amp):
                loss = self.task.losses(model, batch.to(self.world.device), moment)["loss"]
            self.scaler.scale(loss / len(batches)).backward()  # FSDP's ranks do this together, to the end
            if found is None and not bool(loss.isfinite()):
                place = outputs.first or "the loss"
                found = Fault("weights", weight, files) if weight else Fault("loss", place, files)
        files = [name for batch in batches for name in self.task.names(batch)]
        gradient = bad_gradient(model) if found is None else None
        return Fault("gradient", gradient, files) if gradient else found

    @torch.no_grad()
    def _undo(self, kept: Sequence[Tensor]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self.buffers, kept, strict=True):
            buffer.copy_(before)
        if self.scaler.is_enabled():
            self.scaler.update(self.scaler.get_scale())  # forget the gradients it looked at, keep the scale

    def _share_buffers(self) -> None:
        self.parallel.share_buffers(self.task.model, *([] if self.ema is None else [self.ema.model]))

    def _seed(self) -> None:
        seed = hash64(self.config.seed, self.step, self.world.rank)
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        # torch.manual_seed would note a stack trace for devices that are not in use
        torch.default_generator.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
