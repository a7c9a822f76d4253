"""Small synthetic tasks of known demand, which a network is trained on briefly.

After the idea of mechanistic architecture design, https://arxiv.org/abs/2403.17844: a mixer that cannot do
what a task demands is not saved by more data. Samples are a function of a seed; none is seen twice.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.errors import SizeError
from metaformer.study.arms import arm_network
from metaformer.study.plan import Plan
from metaformer.study.results import Arm, Diagnostic, DiagnosticTask
from metaformer.training.optim import parameter_groups

STEPS: Final = 300
BATCH: Final = 64
TESTED: Final = 1024
"""New samples that a trained network is tested on."""
RATE: Final = 1e-3
MARK: Final = 3
"""Side of a pattern in pixels."""
COLORS: Final = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 1.0))
"""Classes of `pointer`, as red, green and blue."""
DIRECTIONS: Final = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Up, right, down and left, in rows and columns."""
Samples = tuple[Tensor, Tensor]
"""Images (N, 3, H, W) and classes (N,)."""


class SyntheticTask(NamedTuple):
    """A task whose demand is a number."""

    make: Callable[[int, int, int, torch.Generator], Samples]
    """(count, side, demand, generator) to samples."""
    demands: Callable[[int], tuple[int, ...]]
    """Demands for images of a side, 16 pixels at least."""
    classes: Callable[[int], int]
    """Classes at a demand."""
    enlarged: bool = False
    """Test on images of twice the side."""


def _canvas(count: int, side: int, random: torch.Generator) -> Tensor:
    """Faint noise, (N, 3, side, side)."""
    return 0.1 * torch.randn(count, 3, side, side, generator=random)


def _below(limit: int, random: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(limit, shape or (1,), generator=random)


def same_different(count: int, side: int, demand: int, random: torch.Generator) -> Samples:
    """Whether two random patterns are the same, `demand` pixels apart along a row."""
    images, labels = _canvas(count, side, random), _below(2, random, count)
    for image, label in zip(images, labels.tolist(), strict=True):
        pattern = torch.randn(3, MARK, MARK, generator=random)
        other = pattern if label else torch.randn(3, MARK, MARK, generator=random)
        top = int(_below(side - MARK + 1, random))
        left = int(_below(side - MARK - demand + 1, random))
        for part, start in ((pattern, left), (other, left + demand)):
            image[:, top : top + MARK, start : start + MARK] = part
    return images, labels


def pointer(count: int, side: int, demand: int, random: torch.Generator) -> Samples:
    """Which color lies where a mark points to, `demand` pixels away.

    Four colors lie around the mark, each of them once, above, on the right, below and on the left: only mark
    and color together tell the class.
    """
    images, labels = _canvas(count, side, random), _below(len(COLORS), random, count)
    middle, marked = MARK // 2, torch.zeros(MARK, MARK)
    marked[middle, middle] = 4.0
    for image, label in zip(images, labels.tolist(), strict=True):
        center = (demand + _below(side - 2 * demand - MARK + 1, random, 2)).tolist()
        order = torch.randperm(len(COLORS), generator=random).tolist()
        for color, (down, right) in zip(order, DIRECTIONS, strict=True):
            top, left = center[0] + demand * down, center[1] + demand * right
            image[:, top : top + MARK, left : left + MARK] = torch.tensor(COLORS[color])[:, None, None]
        top, left = center
        down, right = DIRECTIONS[order.index(label)]
        image[:, top : top + MARK, left : left + MARK] = marked
        image[:, top + middle + down, left + middle + right] = 2.0
    return images, labels


def connectivity(count: int, side: int, demand: int, random: torch.Generator) -> Samples:
    """Whether two marks, on the left and on the right end of a path, lie on one path of two.

    The paths are `demand` pixels long, wander up and down side by side, and go on at the opposite edge of the
    image, so that the height of an end says nothing.
    """
    images, labels = _canvas(count, side, random), _below(2, random, count)
    for image, label in zip(images, labels.tolist(), strict=True):
        left = int(_below(side - demand + 1, random))
        steps = _below(3, random, 2, demand) - 1  # up, straight on or down
        rows = steps.cumsum(1)
        rows[1] += 3 + max(0, int((rows[0] - rows[1]).max()))  # never nearer than that
        rows = (rows - rows.min()) % side
        columns = torch.arange(left, left + demand)
        for row in rows:
            image[:, row, columns] = 1.0
        start = int(_below(2, random))
        end = start if label else 1 - start
        image[0, rows[start][0], left] = image[1, rows[end][-1], left + demand - 1] = 4.0
    return images, labels


def counting(count: int, side: int, demand: int, random: torch.Generator) -> Samples:
    """How many dots there are, from 1 to `demand`; they do not touch."""
    images, labels = _canvas(count, side, random), _below(demand, random, count)
    cells = side // MARK
    for image, label in zip(images, labels.tolist(), strict=True):
        for cell in torch.randperm(cells * cells, generator=random)[: label + 1].tolist():
            top, left = MARK * (cell // cells), MARK * (cell % cells)
            image[:, top : top + MARK - 1, left : left + MARK - 1] = 1.0
    return images, labels


DIAGNOSTICS: Final[dict[DiagnosticTask, SyntheticTask]] = {
    "same_different": SyntheticTask(
        same_different, lambda side: (max(MARK, side // 8), side // 2), lambda _: 2
    ),
    "pointer": SyntheticTask(
        pointer, lambda side: (max(MARK, side // 8), 3 * side // 8), lambda _: len(COLORS)
    ),
    "connectivity": SyntheticTask(connectivity, lambda side: (side // 4, side // 2), lambda _: 2),
    "counting": SyntheticTask(counting, lambda side: (4, 8), lambda demand: demand),
    "size_transfer": SyntheticTask(counting, lambda side: (4,), lambda demand: demand, enlarged=True),
}


@dataclass(frozen=True)
class Trial:
    """A network that is trained on one of the tasks."""

    arm: Arm
    task: DiagnosticTask
    demand: int
    seed: int
    """Of initial values and samples."""

    @property
    def name(self) -> str:
        """Its name in the study's files."""
        return f"{self.arm.name}-{self.task}-{self.demand}-seed{self.seed}"


def planned_trials(plan: Plan, arms: Iterable[Arm], seeds: Iterable[int]) -> Iterator[Trial]:
    """All trials of the plan's tasks at all their demands, those of a seed and network together."""
    side = plan.config().data.image_size
    tasks = [(task, demand) for task in plan.diagnostics for demand in DIAGNOSTICS[task].demands(side)]
    for seed, arm, (task, demand) in product(seeds, arms, tasks):
        yield Trial(arm, task, demand, seed)


def diagnose(plan: Plan, trial: Trial, device: torch.device, steps: int = STEPS) -> Diagnostic:
    """Train a network on a task, and test it on new samples.

    Args:
        plan: of the study.
        trial: which network and task.
        device: where it is trained.
        steps: of training.
    """
    task, side, demand = DIAGNOSTICS[trial.task], plan.config().data.image_size, trial.demand
    classes = task.classes(demand)
    random = torch.Generator().manual_seed(trial.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.seed)
        network = arm_network(plan, trial.arm, classes).to(device, memory_format=torch.channels_last)
        _fit(network, lambda: task.make(BATCH, side, demand, random), steps, device)
    accuracy = None
    try:
        images, labels = task.make(TESTED, side * (1 + task.enlarged), demand, random)
        accuracy = 100 * _accuracy(network.eval(), images, labels, device)
    except SizeError:
        pass  # a network of one size has no accuracy at another
    return Diagnostic(
        arm=trial.arm.name,
        seed=trial.seed,
        task=trial.task,
        demand=demand,
        accuracy=accuracy,
        chance=100 / classes,
    )


def _fit(network: nn.Module, samples: Callable[[], Samples], steps: int, device: torch.device) -> None:
    """Train by AdamW, with a learning rate that falls to 0 by a cosine."""
    optimizer = torch.optim.AdamW(parameter_groups(network, 0.05), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for _ in range(steps):
        images, labels = samples()
        loss = F.cross_entropy(network(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@torch.inference_mode()
def _accuracy(network: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> float:
    """Share of samples that are classified right."""
    right = [
        network(part.to(device)).argmax(1).cpu() == truth
        for part, truth in zip(images.split(BATCH), labels.split(BATCH), strict=True)
    ]
    return float(torch.cat(right).double().mean())
