"""What the runs of a study left behind; statistics and report are computed from nothing else."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np

from metaformer.serialize import Range, Serializable, Text

Role = Literal["sweep", "final", "control"]
"""A run of the learning-rate sweep, of the comparison itself, or of a control."""
PerturbationKind = Literal["shift", "rotation", "size", "corruption"]
"""Perturbations of test images against which accuracy is measured."""
DiagnosticTask = Literal["same_different", "pointer", "connectivity", "counting", "size_transfer"]
"""Synthetic tasks of known demand."""
Count = Annotated[int, Range(0, 2**63 - 1, integer=True)]
Positive = Annotated[float, Range(0, 1e30, above=True)]
Percent = Annotated[float, Range(0, 100)]


@dataclass(frozen=True, kw_only=True)
class Cost(Serializable):
    """What a network costs at one image size, on the machine that the study names."""

    image_size: Count
    """Height and width in pixels."""
    macs: Count
    """Multiply-accumulates per image."""
    latency_1: Positive | None = None
    """Milliseconds per batch of one image."""
    latency_8: Positive | None = None
    """Milliseconds per batch of eight images."""
    inference_memory: Count | None = None
    """Peak bytes of a forward pass of eight images."""
    training_memory: Count | None = None
    """Peak bytes of a training step of eight images."""


@dataclass(frozen=True, kw_only=True)
class Arm(Serializable):
    """A network of the study: a mixer in the skeleton, after the budget was matched, or a control."""

    name: str
    """Its label in plan and report."""
    mixers: tuple[str, ...]
    """Token mixer of each stage; empty for an external network."""
    control: str | None = None
    """`repeat` (A/A), `shuffled_labels`, `identity`, `random` or `external`; None for a mixer of the plan."""
    changed: tuple[str, ...] = ()
    """What the budget solver changed in the skeleton, as `dims: (32, 64, 128, 256) to (30, 60, 120, 240)`."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """The same as fields: of `MetaFormerConfig`, or of the external network."""
    relative_cost: Positive | None = None
    """Cost by what the budget matches, in relation to the baseline's; None where nothing is matched."""
    parameters: Count
    """Trainable and fixed parameters."""
    learning_rate: Positive | None = None
    """Chosen by the sweep; None before it is complete."""
    costs: tuple[Cost, ...] = ()
    """At two or three image sizes."""


@dataclass(frozen=True, kw_only=True)
class RunResult(Serializable):
    """One run: its folder is `runs/NAME` of the study, its predictions `predictions/NAME.safetensors`."""

    name: str
    arm: str
    role: Role
    learning_rate: Positive
    seed: Count
    """Runs of several arms are paired by it; a repeat is trained with another than it has here."""
    validation: Percent | None = None
    """Primary metric on validation data, at the last checkpoint, in percent."""
    test: Percent | None = None
    """Primary metric on test data, at the last checkpoint, in percent; None for runs of the sweep."""
    error: str | None = None
    """Why it failed or was excluded."""


def run_name(role: Role, arm: str, seed: int, rate: float | None) -> str:
    """Name of a run in all files of the study; runs of the sweep differ by their learning rates."""
    return f"sweep-{arm}-lr{rate!r}-seed{seed}" if role == "sweep" else f"final-{arm}-seed{seed}"


@dataclass(frozen=True)
class Predictions:
    """Top-1 predictions of one run for every test image, in the order of the study's `test.json`."""

    predicted: np.ndarray
    """Class of each image, (N,) int32."""
    probability: np.ndarray
    """Probability of that class, (N,) float32."""


@dataclass(frozen=True)
class TestSet:
    """Test images of a study."""

    images: tuple[str, ...]
    """Paths relative to the data set, N of them."""
    labels: np.ndarray
    """True classes, (N,) int32."""
    clusters: np.ndarray
    """Number of the group that an image belongs to (a designer, a patient), (N,) int32; images of one group
    are resampled together. Without groups each image is its own."""
    class_names: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in `test.json`."""
        return {
            "images": list(self.images),
            "labels": self.labels.tolist(),
            "clusters": self.clusters.tolist(),
            "class_names": list(self.class_names),
        }


@dataclass(frozen=True, kw_only=True)
class Square(Serializable):
    """The smallest centered square that holds a share of the effective receptive field."""

    share: Annotated[float, Range(0, 1)]
    side: Count
    """In pixels."""
    ratio: Annotated[float, Range(0, 1)]
    """Its area's share of the input's."""


@dataclass(frozen=True, kw_only=True)
class FieldSize(Serializable):
    """Size of the effective receptive field of one trained network."""

    run: Text
    """Name of its run."""
    arm: Text
    seed: Count
    squares: tuple[Square, ...]


@dataclass(frozen=True, kw_only=True)
class PerturbedAccuracy(Serializable):
    """Accuracy on perturbed test images."""

    kind: PerturbationKind
    name: Text
    """Of a corruption, such as `gaussian_noise`; else that of the kind."""
    level: Annotated[float, Range(-1e6, 1e6)]
    """Pixels, degrees, side in pixels, or severity from 1 to 5; 0 of a shift or rotation is no change."""
    accuracy: Percent


@dataclass(frozen=True, kw_only=True)
class Robustness(Serializable):
    """Accuracy of one trained network on perturbed test images."""

    run: Text
    """Name of its run."""
    arm: Text
    seed: Count
    accuracies: tuple[PerturbedAccuracy, ...]


@dataclass(frozen=True, kw_only=True)
class Diagnostic(Serializable):
    """How well an arm's network learns a small synthetic task of known demand."""

    arm: Text
    seed: Count
    task: DiagnosticTask
    demand: Count
    """How much the task demands: pixels of a distance, length of a path, or objects."""
    accuracy: Percent | None
    """On new samples of the task; None where the network does not take their size."""
    chance: Percent


@dataclass(frozen=True, kw_only=True)
class TransferResult(Serializable):
    """A trained network of the baseline whose mixers were swapped for an arm's, before and after tuning."""

    arm: Text
    seed: Count
    swapped: Percent | None = None
    """Test accuracy right after the swap."""
    tuned: Percent | None = None
    """After fine-tuning."""
    error: str | None = None
    """Why it failed."""
