"""Directory of a study: its files, and what a report reads from them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from metaformer.errors import ConfigError, DataError, VersionError
from metaformer.report.readable import Readable
from metaformer.serialize import Fields, Range, Serializable, Text, errors_at, from_dict, shown
from metaformer.storage import atomic_path, read_bytes, read_json, read_text, write_text
from metaformer.study.plan import Plan, parse_plan
from metaformer.study.results import (
    Arm,
    Cost,
    Diagnostic,
    FieldSize,
    Predictions,
    Robustness,
    RunResult,
    TestSet,
    TransferResult,
    run_name,
)

SCHEMA: Final = 1
LARGEST: Final = 1 << 28
"""Bytes of a list of test images or of predictions, at most."""
T = TypeVar("T", bound=Serializable)
_HEAD: Final[Mapping[str, Any]] = {
    "schema": int,
    "plan_sha256": Text,
    "created": Text,
    "machine": dict[Text, Any],
    "versions": dict[Text, Text],
    "arms": tuple[Arm, ...],
}
"""Types of what `study.json` holds."""
Kind = Literal["costs", "results", "robustness", "receptive_fields", "diagnostics", "transfer"]
"""Folders of records."""


@dataclass(frozen=True)
class StudyDir:
    """Files of a study. Each is written whole, by one process, so that several machines may share them."""

    path: Path

    @property
    def plan(self) -> Path:
        """Copy of the plan."""
        return self.path / "plan.yaml"

    @property
    def head(self) -> Path:
        """Hash of the plan, machine, versions, and the networks after the budget was matched."""
        return self.path / "study.json"

    @property
    def test_set(self) -> Path:
        """Test images with labels and clusters."""
        return self.path / "test.json"

    def run(self, name: str) -> Path:
        """Run directory."""
        return self.path / "runs" / name

    def predictions(self, name: str) -> Path:
        """Predictions of a run on the test images."""
        return self.path / "predictions" / f"{name}.safetensors"

    def receptive_field(self, name: str) -> Path:
        """Effective receptive field of a run's network."""
        return self.path / "receptive_fields" / f"{name}.safetensors"

    def record(self, kind: Kind, name: str) -> Path:
        """One record, such as the result of a run or the costs of an arm."""
        return self.path / kind / f"{name}.json"

    def lock(self, name: str) -> Path:
        """Lock file of the process that works at something; it is free again when that process ends."""
        return self.path / "locks" / f"{name}.lock"

    def records(self, kind: Kind, hint: type[T]) -> Iterator[T]:
        """All records of a kind, by name.

        Raises:
            DataError: one is damaged.
        """
        for file in sorted((self.path / kind).glob("*.json")):
            if not file.name.startswith("."):
                yield read_record(file, hint)


@dataclass(frozen=True, repr=False)
class Study(Readable):
    """A study as its directory has it; statistics and report need nothing else."""

    directory: StudyDir
    plan: Plan
    plan_sha256: str
    created: str
    """Time at which it began, in ISO 8601."""
    machine: Mapping[str, Any]
    """Fields of `metaformer.bench.timing.Machine`, of the machine that began it."""
    versions: Mapping[str, str]
    """Versions of packages by name."""
    arms: tuple[Arm, ...]
    """With the learning rates that are chosen by now, and the costs that are measured."""
    runs: tuple[RunResult, ...]
    """Every run that has ended, failed ones too."""
    test_set: TestSet
    robustness: tuple[Robustness, ...] = ()
    field_sizes: tuple[FieldSize, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    transfers: tuple[TransferResult, ...] = ()

    def text(self) -> str:
        """Its arms, each with the runs that have ended and the mean of their test figures."""
        lines = [f"study {self.directory.path}: {len(self.arms)} networks, {len(self.runs)} runs have ended"]
        for arm in self.arms:
            tested = [run.test for run in self.runs if run.arm == arm.name and run.test is not None]
            mean = f", test {sum(tested) / len(tested):.2f} % on average" if tested else ""
            lines.append(f"  {arm.name}: {len(tested)} compared{mean}")
        return "\n".join(lines)

    def arm(self, name: str) -> Arm:
        """An arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)

    def predictions(self, name: str) -> Predictions:
        """What a run predicted.

        Args:
            name: of the run.

        Raises:
            DataError: there are none, or they do not fit the test images.
        """
        file = self.directory.predictions(name)
        tensors = read_arrays(file)
        images = len(self.test_set.images)
        for key, kind in (("predicted", np.int32), ("probability", np.float32)):
            if key not in tensors or tensors[key].shape != (images,) or tensors[key].dtype != kind:
                raise DataError(f"{file}: {key} must be {images:,} numbers, one for each test image")
        predicted, classes = tensors["predicted"], len(self.test_set.class_names)
        if images and not 0 <= predicted.min() <= predicted.max() < classes:
            raise DataError(f"{file}: predicted must be classes from 0 to {classes - 1}")
        return Predictions(predicted, tensors["probability"])

    def receptive_field(self, name: str) -> NDArray[np.float32] | None:
        """Scores of a run's effective receptive field, (H, W) from 0 to 1; None where it was not measured.

        Raises:
            DataError: the file is damaged.
        """
        file = self.directory.receptive_field(name)
        if not file.exists():
            return None
        scores = read_arrays(file).get("scores")
        if scores is None or scores.ndim != 2 or scores.dtype != np.float32:
            raise DataError(f"{file}: scores must be a map (H, W) of float32")
        return scores


def read_study(directory: str | Path) -> Study:
    """Read a study, however far it has come.

    Raises:
        DataError: the directory holds none, or a file is damaged.
        VersionError: it is in the format of another version.
        ConfigError: its plan cannot be read any more.
    """
    folder = StudyDir(Path(directory))
    head = read_head(folder)
    plan = parse_plan(read_text(folder.plan), folder.plan)
    if plan.sha256 != head["plan_sha256"]:
        raise ConfigError(f"{folder.plan}: is not the plan that the study in {folder.path} began with")
    runs = tuple(folder.records("results", RunResult))
    _check_arms(folder, head["arms"], plan)
    for run in runs:
        _check_run(folder, run, head["arms"], plan)
    costs = {record.arm: record.costs for record in folder.records("costs", ArmCosts)}
    rates = chosen_rates(runs, plan)
    arms = (
        replace(arm, learning_rate=rates.get(tuned_as(arm, plan)), costs=costs.get(tuned_as(arm, plan), ()))
        for arm in head["arms"]
    )
    return Study(
        folder,
        plan,
        head["plan_sha256"],
        head["created"],
        head["machine"],
        head["versions"],
        tuple(arms),
        runs,
        read_test_set(folder.test_set),
        tuple(folder.records("robustness", Robustness)),
        tuple(folder.records("receptive_fields", FieldSize)),
        tuple(folder.records("diagnostics", Diagnostic)),
        tuple(folder.records("transfer", TransferResult)),
    )


@dataclass(frozen=True, kw_only=True)
class ArmCosts(Serializable):
    """Costs of one arm, in a file of their own."""

    arm: Text
    costs: tuple[Cost, ...]


def read_head(folder: StudyDir) -> Fields:
    """What `study.json` holds.

    Raises:
        DataError: there is none, or it is damaged.
        VersionError: it is in the format of another version.
    """
    if not folder.head.is_file():
        raise DataError(f"{folder.path}: holds no study (study.json is missing)")
    head = Fields.read(read_json(folder.head), _HEAD, folder.head, DataError)
    if head["schema"] != SCHEMA:
        version = head.get("versions", {}).get("metaformer")
        raise VersionError(
            folder.head, head["schema"], version, SCHEMA, kind="study", remedy="start a new study"
        )
    return head


def _check_arms(folder: StudyDir, arms: Sequence[Arm], plan: Plan) -> None:
    """Refuse networks that are not the plan's, which would be compared under its names."""
    names = [arm.name for arm in arms]
    mixers = {arm.name for arm in arms if arm.control is None}
    if mixers != plan.mixers.keys() or len({*names}) < len(names):
        raise DataError(f"{folder.head}: arms: are not the networks of the plan")


def _check_run(folder: StudyDir, run: RunResult, arms: Sequence[Arm], plan: Plan) -> None:
    """Refuse a result that is not of the run it is named after, and so would count as another's."""
    seeds = plan.sweep_seeds if run.role == "sweep" else plan.seeds
    known = run.seed in seeds and run.arm in {arm.name for arm in arms}
    if not known or run.name != run_name(run.role, run.arm, run.seed, run.learning_rate):
        raise DataError(
            f"{folder.path / 'results'}: {shown(run.name)} is said to be of {shown(run.arm)} and seed "
            f"{run.seed}: no run of the plan is"
        )


def read_record(file: Path, hint: type[T]) -> T:
    """One record.

    Raises:
        DataError: it is damaged.
    """
    values = read_json(file)
    with errors_at(file, DataError):
        return from_dict(hint, values)


def read_test_set(file: Path) -> TestSet:
    """Test images with labels and clusters.

    Raises:
        DataError: the file is missing or damaged.
    """
    numbers = tuple[Annotated[int, Range(0, 2**31 - 1, integer=True)], ...]
    types = {
        "images": tuple[str, ...],
        "labels": numbers,
        "clusters": numbers,
        "class_names": tuple[Text, ...],
    }
    values = Fields.read(read_json(file, largest=LARGEST), types, file, DataError)
    images, names = values["images"], values["class_names"]
    labels, clusters = (np.array(values[name], dtype=np.int32) for name in ("labels", "clusters"))
    if not images or not len(images) == len(labels) == len(clusters):
        raise DataError(f"{file}: images, labels and clusters must be equally many")
    if labels.max() >= len(names):
        raise DataError(f"{file}: labels must be below {len(names)}, the number of classes")
    return TestSet(images, labels, clusters, names)


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write one of the study's JSON files, whole or not at all."""
    write_text(file, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def write_arrays(file: Path, **arrays: NDArray[Any]) -> None:
    """Write arrays as a safetensors file, whole or not at all."""
    from safetensors.numpy import save_file

    with atomic_path(file) as temporary:
        save_file(arrays, temporary)


def read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """Arrays of a safetensors file.

    Raises:
        DataError: it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = read_bytes(file, largest=LARGEST)  # not mapped: a sparse file may claim any size
    try:
        return load(data)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: damaged ({error})") from error


def tuned_as(arm: Arm, plan: Plan) -> str:
    """Name of the arm whose learning rate and costs an arm has: of controls with its network the baseline."""
    return plan.baseline if arm.control in ("repeat", "shuffled_labels") else arm.name


def chosen_rates(runs: Sequence[RunResult], plan: Plan) -> dict[str, float | None]:
    """The learning rate of each arm whose sweep is complete: of the best mean on validation data.

    One at which a seed failed is not chosen, and None is where that leaves nothing; of equal ones the
    smaller is.
    """
    found: dict[str, dict[float, list[float | None]]] = {}
    for run in runs:
        if run.role == "sweep":
            found.setdefault(run.arm, {}).setdefault(run.learning_rate, []).append(run.validation)
    chosen = {}
    for arm, rates in found.items():
        if sum(map(len, rates.values())) == len(plan.learning_rates) * len(plan.sweep_seeds):
            means = {
                rate: fmean(v for v in values if v is not None)
                for rate, values in rates.items()
                if None not in values
            }
            chosen[arm] = min(means, key=lambda rate: (-means[rate], rate), default=None)
    return chosen
