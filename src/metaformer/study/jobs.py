"""The jobs of a study as a function of its plan and of what is done: each writes one record."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

from metaformer.study.diagnostics import Trial, planned_trials
from metaformer.study.plan import Plan
from metaformer.study.results import Arm, RunResult, run_name
from metaformer.study.runs import Run, planned_runs
from metaformer.study.study_dir import Kind, chosen_rates, tuned_as
from metaformer.study.transfer import transfer_run

MEASURED_SEEDS: Final = 3
"""Seeds whose trained networks are measured beside their accuracy, and of the diagnostic tasks."""


@dataclass(frozen=True)
class Job:
    """Something that one process does."""

    kind: Kind
    """Folder of the record that it writes."""
    record: str
    """Name of that record."""
    subject: Arm | Run | Trial
    """The network whose costs are measured, the run that is trained or measured, or the trial."""
    ready: bool = True
    """Whether what it needs is there."""

    @property
    def name(self) -> str:
        """What it is called in locks and lines; runs by their names alone."""
        return self.record if self.kind in ("results", "transfer") else f"{self.kind}-{self.record}"


def planned_jobs(plan: Plan, arms: Sequence[Arm], results: Mapping[str, RunResult]) -> Iterator[Job]:
    """Everything that is to be done, in order: costs, runs, then what is measured beside them.

    Args:
        plan: of the study.
        arms: its networks, the baseline first.
        results: of the runs that have ended, by name.
    """
    rates = chosen_rates(tuple(results.values()), plan)
    runs = list(planned_runs(plan, arms, rates))
    for arm in arms:
        if tuned_as(arm, plan) == arm.name:
            yield Job("costs", arm.name, arm)
    for run in runs:
        ready = run.learning_rate is not None or run.tuned_as in rates
        yield Job("results", run.name, run, ready)
    mixers = [arm for arm in arms if arm.control is None]
    finals = [run for run in runs if run.role == "final" and not _failed(run, results)]
    yield from _measurements(plan, finals, results)
    for trial in planned_trials(plan, mixers, plan.seeds[:MEASURED_SEEDS]):
        yield Job("diagnostics", trial.name, trial)
    if plan.transfer is not None:
        donors = [run for run in finals if run.arm.name == plan.baseline]
        for donor, arm in product(donors, mixers):
            run = transfer_run(plan, arm, donor.seed)
            yield Job("transfer", run.name, run, donor.name in results)


def donor_name(plan: Plan, run: Run) -> str:
    """Name of the baseline's run whose trained network a transfer begins with."""
    return run_name("final", plan.baseline, run.seed, None)


def _failed(run: Run, results: Mapping[str, RunResult]) -> bool:
    return run.name in results and results[run.name].error is not None


def _measurements(plan: Plan, finals: Sequence[Run], results: Mapping[str, RunResult]) -> Iterator[Job]:
    """What is measured of the trained networks of a few seeds."""
    kinds: dict[Kind, bool] = {
        "robustness": bool(plan.robustness),
        "receptive_fields": plan.receptive_field,
    }
    for kind, run in product(kinds, finals):
        if kinds[kind] and run.seed in plan.seeds[:MEASURED_SEEDS]:
            yield Job(kind, run.name, run, run.name in results)
