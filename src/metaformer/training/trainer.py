"""Optimizer steps: forward, backward, gradient clipping, mixed precision, EMA, and checks for NaN."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from metaformer.checkpoint.checkpoint import Checkpoint, pack_optimizer, restore_optimizer
from metaformer.config import RuntimeConfig, TrainConfig
from metaformer.data.dataset import Batch
from metaformer.data.sampler import hash64
from metaformer.distributed import World, all_gather_object, any_rank
from metaformer.errors import ConfigError, TrainingError
from metaformer.models.base import autocast
from metaformer.tasks import TASKS
from metaformer.tasks.base import StepContext, Task
from metaformer.training.ddp import DataParallel
from metaformer.training.diagnose import NonFinite, nonfinite_gradient, nonfinite_weight, record_nonfinite
from metaformer.training.ema import Ema
from metaformer.training.freeze import freeze_stages
from metaformer.training.optim import build_optimizer, set_learning_rate
from metaformer.training.schedule import Schedule


class NonFiniteError(TrainingError):
    """A step with NaN or infinity; weights, buffers, EMA and optimizer are as before it."""


def build_parallel(runtime: RuntimeConfig, world: World) -> DataParallel:
    """DDP or FSDP as configured; a single device holds the whole model either way."""
    if runtime.parallel == "ddp" or world.size == 1:
        return DataParallel(runtime, world)
    from metaformer.training.fsdp import FullyShardedParallel  # slow to import

    return FullyShardedParallel(runtime, world)


class Trainer:
    """Model, optimizer, EMA and gradient scaler of a run.

    The random numbers of a step (dropout, stochastic depth) are a function of seed, step and rank, so that
    no generator state carries over from one step to the next.
    """

    def __init__(self, config: TrainConfig, task: Task, schedule: Schedule, world: World) -> None:
        self.config, self.task, self.schedule, self.world = config, task, schedule, world
        self.step = 0
        self.interruptible: Callable[[], AbstractContextManager[None]] = nullcontext
        """Context of what takes long in a step; within it `state_dicts` may be called by another thread."""
        self._buffers_before: list[Tensor] | None = None
        self.frozen = freeze_stages(task.model, config.model.freeze)
        self.parallel = build_parallel(config.runtime, world)
        self.ema = None if config.ema.decay is None else Ema(task.model, config.ema.decay)
        if self.ema is not None:
            self.parallel.shard(self.ema.model)
        self.model = self.parallel.wrap(task.model)
        self.buffers = list(task.model.buffers())
        self.optimizer = build_optimizer(config.optim, task.model)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.runtime.amp == "fp16")
        self._keep_frozen()

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated and saved as `best`: the EMA, if there is one and it is asked for."""
        return self.ema.model if self.ema is not None and self.config.ema.evaluate else self.task.model

    def forward(self, images: Tensor, *sizes: Any) -> Any:
        """Outputs of the evaluated model, in evaluation mode; see `TaskSpec.forward`."""
        model = self.eval_model
        training = model.training
        model.eval()
        with autocast(self.world.device, self.config.runtime.amp):
            forward = TASKS[self.config.task].forward(model)
            outputs = forward(images.to(self.world.device, non_blocking=True), *sizes)
        model.train(training)
        self._keep_frozen()
        return outputs

    def _keep_frozen(self) -> None:
        """Put frozen parts back into evaluation mode, after `train()` went over all modules."""
        for part in self.frozen:
            part.eval()

    def take_step(self, batches: Sequence[Batch], epoch: int) -> dict[str, float]:
        """Optimizer step over its micro-batches; gives this rank's mean losses, `grad_norm` and `lr`.

        In float16 a gradient may overflow while the loss is scaled up: the optimizer then skips the step, the
        scale is halved, and `overflow` is 1. Anything else that is not finite is an error.

        Raises:
            NonFiniteError: an input, loss or gradient is not finite on some rank.
        """
        self._seed_step()
        lr = self.schedule(self.step)
        set_learning_rate(self.optimizer, lr)
        if not self.model.training:  # train() walks over all modules
            self.model.train()
            self._keep_frozen()
        # the forward pass updates running statistics
        self._buffers_before = [buffer.clone() for buffer in self.buffers]
        try:
            with self.interruptible():
                metrics = self._compute_gradients(batches, epoch, self._buffers_before)
        finally:
            self._buffers_before = None
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.task.model)
        return {**metrics, "lr": lr}

    def _compute_gradients(
        self, batches: Sequence[Batch], epoch: int, buffers: Sequence[Tensor]
    ) -> dict[str, float]:
        """Unscaled, clipped gradients in the parameters; gives the step's metrics without `lr`."""
        sums = self._backward(batches, epoch)
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = self.parallel.gradient_norm(parameters)
        metrics = {name: float(value) / len(batches) for name, value in sums.items()}
        grad_norm = float(norm)
        forward_finite = math.isfinite(metrics.pop("input")) and math.isfinite(metrics["loss"])
        overflow = forward_finite and not math.isfinite(grad_norm) and self.scaler.get_scale() > 1
        if any_rank(not (forward_finite and (math.isfinite(grad_norm) or overflow)))[0]:
            self._raise_nonfinite(batches, epoch, buffers)
        if self.scaler.is_enabled():
            metrics["overflow"] = float(overflow)
        if not overflow:
            metrics["grad_norm"] = grad_norm
            if self.config.optim.clip is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optim.clip, norm)
        return metrics

    def skip_step(self) -> None:
        """Move on to the next step after a NonFiniteError."""
        self.step += 1

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Context of an evaluation: equal buffers and full parameters on every rank."""
        self._broadcast_buffers()
        with self.parallel.summon_full_params(self.eval_model):
            yield

    def eval_state_dict(self) -> dict[str, Tensor]:
        """State dict of the evaluated model on the first rank, empty on the others. All ranks call it."""
        self._broadcast_buffers()
        return self.parallel.full_state_dict(self.eval_model)

    def state_dicts(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Tensors of `model`, `optimizer` and `ema`, and plain values, for `restore`. All ranks call it."""
        self._broadcast_buffers()
        tensors, plain = pack_optimizer(self.optimizer)
        groups = {"model": self._model_state(), "optimizer": tensors}
        if self.ema is not None:
            groups["ema"] = self.ema.model.state_dict()
        return groups, {"step": self.step, "optimizer": plain, "scaler": self.scaler.state_dict()}

    def _model_state(self) -> dict[str, Tensor]:
        """State dict of the model after the last complete step."""
        state = self.task.model.state_dict()
        if self._buffers_before is not None:
            names = [name for name, _ in self.task.model.named_buffers()]
            before = dict(zip(names, self._buffers_before, strict=True))
            state.update({name: value for name, value in before.items() if name in state})
        return state

    def restore(self, saved: Checkpoint) -> None:
        """Load a checkpoint.

        Raises:
            WeightsError: it is of another model, optimizer or EMA.
        """
        saved.load(self.task.model, "model")
        if self.ema is not None:
            saved.load(self.ema.model, "ema")
        restore_optimizer(self.optimizer, saved)
        self.scaler.load_state_dict(saved.state["scaler"])
        self.step = int(saved.state["step"])

    def _backward(self, batches: Sequence[Batch], epoch: int) -> dict[str, Tensor]:
        """Accumulate gradients over the micro-batches; returns the losses, summed."""
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(batches):
            on_device = batch.to(self.world.device)
            with self.parallel.gradient_sync(self.model, last=number == len(batches) - 1):
                losses = self._losses(self.model, on_device, self._context(epoch, number, len(batches)))
                self.scaler.scale(losses["loss"] / len(batches)).backward()
            losses["input"] = on_device.images.sum()  # one pass; finite only if all pixels are
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach()
        return sums

    def _losses(self, model: nn.Module, batch: Batch, context: StepContext) -> dict[str, Tensor]:
        try:
            with autocast(self.world.device, self.config.runtime.amp):
                return self.task.losses(model, batch, context)
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 value per channel"):
                raise
            raise ConfigError(
                f"step {self.step}: a batch norm of the network has one value of each channel, as this pass "
                f"has {len(batch.images)} image(s) and a map of 1×1 pixel: set a larger data.batch_size or "
                "data.image_size, or a smaller optim.accumulate"
            ) from error

    def _context(self, epoch: int, number: int, count: int) -> StepContext:
        """Position of this rank's micro-batch `number` of `count`."""
        return StepContext(self.step, epoch, self.world.rank * count + number)

    def _raise_nonfinite(self, batches: Sequence[Batch], epoch: int, buffers: Sequence[Tensor]) -> NoReturn:
        causes = all_gather_object(self._diagnose(batches, epoch, buffers))
        self._roll_back(buffers)
        rank = next((number for number, cause in enumerate(causes) if cause is not None), self.world.rank)
        cause = causes[rank] or NonFinite("gradient", "no place that repeating the step could find", [])
        where = f"step {self.step}" + (f", rank {rank}" if self.world.size > 1 else "")
        raise NonFiniteError(f"{where}: {cause.message()}")

    def _diagnose(self, batches: Sequence[Batch], epoch: int, buffers: Sequence[Tensor]) -> NonFinite | None:
        """Repeat the step on this rank to find what was not finite first."""
        self._roll_back(buffers)
        self._seed_step()
        model, cause = self.task.model, None
        weight = nonfinite_weight(model)  # before a forward pass puts it into running statistics
        for number, batch in enumerate(batches):
            files = self.task.names(batch)
            bad = ~batch.images.flatten(1).isfinite().all(dim=1)  # (B,)
            if cause is None and bool(bad.any()):
                own = [name for name, wrong in zip(files, bad.tolist(), strict=True) if wrong]
                cause = NonFinite("input", own[0], own)
            context = self._context(epoch, number, len(batches))
            with record_nonfinite(model) as modules:
                loss = self._losses(model, batch.to(self.world.device), context)["loss"]
            self.scaler.scale(loss / len(batches)).backward()  # FSDP: all ranks together, to the end
            if cause is None and not bool(loss.isfinite()):
                location = modules[0] if modules else "the loss"
                cause = NonFinite("weights", weight, files) if weight else NonFinite("loss", location, files)
        if cause is None and (gradient := nonfinite_gradient(model)) is not None:
            cause = NonFinite("gradient", gradient, [name for b in batches for name in self.task.names(b)])
        return cause

    @torch.no_grad()
    def _roll_back(self, buffers: Sequence[Tensor]) -> None:
        """Drop the gradients and restore the buffers."""
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self.buffers, buffers, strict=True):
            buffer.copy_(before)
        if self.scaler.is_enabled():
            self.scaler.update(self.scaler.get_scale())  # clears its record of infinities, keeps the scale

    def _broadcast_buffers(self) -> None:
        self.parallel.broadcast_buffers(self.task.model, *([] if self.ema is None else [self.ema.model]))

    def _seed_step(self) -> None:
        seed = hash64(self.config.seed, self.step, self.world.rank)
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        # torch.manual_seed would record a stack trace for each device that is not initialized
        torch.default_generator.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
        if self.world.device.type == "cuda":
            torch.cuda.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
