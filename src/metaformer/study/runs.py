"""The runs of a study as a function of its plan: which there are, in which order, with which settings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from metaformer.config import TrainConfig
from metaformer.data.loader import Loader
from metaformer.data.shards.tar import TarImages
from metaformer.distributed import World
from metaformer.study.arms import EXTERNAL, arm_task
from metaformer.study.plan import Plan
from metaformer.study.results import Arm, Role, run_name
from metaformer.study.study_dir import tuned_as
from metaformer.training.loop import build_sampler
from metaformer.training.schedule import build_schedule
from metaformer.training.trainer import Trainer

REPEAT_OFFSET: Final = 1_000_000_007
"""What is added to the seed of a repeat, which is paired with the run of the seed itself."""
SHUFFLED_SEEDS: Final = 2
"""Runs on shuffled labels: whether they are at chance shows in one."""


@dataclass(frozen=True)
class Run:
    """A run that the plan asks for."""

    name: str
    arm: Arm
    role: Role
    seed: int
    learning_rate: float | None
    """None while it is not chosen yet, or where the network failed at every one."""
    tuned_as: str
    """The arm whose sweep chooses it."""


def planned_runs(plan: Plan, arms: Sequence[Arm], rates: Mapping[str, float | None]) -> Iterator[Run]:
    """All runs, the most informative first.

    Learning rates come first, from the middle of the list outward, those of all networks in turn. Then come
    blocks: a seed's runs of all mixers, then of the controls, before those of the next seed, since a
    difference needs both of its runs. The order depends on no result, so that looking early does not bias it.

    Args:
        plan: of the study.
        arms: its networks, the baseline first.
        rates: chosen learning rates by arm, as far as they are known.
    """
    swept = [arm for arm in arms if tuned_as(arm, plan) == arm.name]
    for seed in plan.sweep_seeds:
        for rate in outward(sorted(plan.learning_rates)):
            for arm in swept:
                yield Run(run_name("sweep", arm.name, seed, rate), arm, "sweep", seed, rate, arm.name)
    for number, seed in enumerate(plan.seeds):
        for arm in sorted(arms, key=lambda one: one.control is not None):
            if arm.control == "shuffled_labels" and number >= SHUFFLED_SEEDS:
                continue
            role: Role = "final" if arm.control is None else "control"
            tuned = tuned_as(arm, plan)
            chosen = rates.get(tuned)
            yield Run(run_name(role, arm.name, seed, chosen), arm, role, seed, chosen, tuned)


def outward(values: Sequence[float]) -> list[float]:
    """The middle value, then those around it by turns."""
    middle = (len(values) - 1) / 2
    return [values[i] for i in sorted(range(len(values)), key=lambda i: (abs(i - middle), i))]


def run_config(plan: Plan, run: Run) -> TrainConfig:
    """The configuration of a run whose learning rate is known.

    Runs of one seed begin with equal values in the parts that their networks share, where these have one
    shape, and see the same images in the same order, augmented alike.
    """
    assert run.learning_rate is not None
    config = plan.config()
    model = replace(config.model, name=plan.skeleton.model, pretrained=False, checkpoint=None)
    if run.arm.control == "external":
        model = replace(model, name=f"{EXTERNAL}{plan.external}", mixers=None, overrides=run.arm.overrides)
    else:
        overrides = {**plan.skeleton.overrides, **run.arm.overrides}
        model = replace(model, mixers=list(run.arm.mixers), overrides=overrides)
    return replace(
        config,
        model=model,
        optim=replace(config.optim, lr=run.learning_rate),
        runtime=replace(config.runtime, keep=1),
        seed=run.seed + REPEAT_OFFSET * (run.arm.control == "repeat"),
    )


def check_run(plan: Plan, arm: Arm, world: World) -> None:
    """Build all that trains an arm, and take a step on its data, so that a study that cannot run ends here.

    Args:
        plan: of the study.
        arm: one of its networks.
        world: where it is trained.

    Raises:
        ConfigError: a field of the recipe that cannot be, such as an `auto_augment` that timm does not know.
        DataError: data that cannot be read, or too few for a batch.
        TrainingError: something in the step is not finite.
    """
    config = run_config(plan, Run("", arm, "final", plan.seeds[0], min(plan.learning_rates), arm.name))
    task = arm_task(plan, arm)(config, world)
    try:
        sampler = build_sampler(config, task, world)
        trainer = Trainer(config, task, build_schedule(config, sampler.steps), world)
        if not isinstance(task.train.source, TarImages):
            loader = Loader(task.train, sampler, skip_bad=config.data.on_bad_image == "skip")
            trainer.take_step(list(islice(loader, sampler.accumulate)), 0)
    finally:
        task.close()
