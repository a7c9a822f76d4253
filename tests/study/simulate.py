"""Simulated studies: correct answers of networks with known accuracies, and study directories of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from metaformer.serialize import Serializable
from metaformer.study.plan import read_plan
from metaformer.study.results import (
    Arm,
    Cost,
    Diagnostic,
    FieldSize,
    PerturbationKind,
    PerturbedAccuracy,
    Robustness,
    RunResult,
    Square,
    TransferResult,
)
from metaformer.study.statistics import Correct
from metaformer.study.study_dir import SCHEMA, ArmCosts, StudyDir


@dataclass(frozen=True)
class Population:
    """Networks, seeds and test images, from which studies are drawn.

    A run of network a with seed s is right about image i of group g where
    m_a + seed_as + group_g + taste_ag + image_i + taste_ai + noise_asi > 0, all of them normal; so the
    accuracy over all seeds and images is exactly Φ(m_a / √(1 + variances)).
    """

    accuracies: tuple[float, ...] = (0.9, 0.9)
    """True accuracy of each network, the baseline first."""
    images: int = 1000
    groups: int | None = None
    """Groups of unequal size that the images are from; None for independent images."""
    seed: float = 0.05
    """Deviations of the effects."""
    group: float = 0.4
    group_taste: float = 0.0
    image: float = 1.5
    image_taste: float = 0.5

    def draw(self, random: np.random.Generator, seeds: int) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """A study: correctness (A, S, N) and the images' groups (N,)."""
        networks, images = len(self.accuracies), self.images
        count = self.groups or images
        sizes = random.lognormal(0, 0.5, count)
        groups = random.choice(count, images, p=sizes / sizes.sum()) if self.groups else np.arange(images)
        common = self.group * random.normal(size=count)[groups] + self.image * random.normal(size=images)
        tastes = self.group_taste * random.normal(size=(networks, count))[:, groups]
        tastes += self.image_taste * random.normal(size=(networks, images))
        runs = self.seed * random.normal(size=(networks, seeds, 1)) + random.normal(
            size=(networks, seeds, images)
        )
        parts = (self.seed, self.group, self.group_taste, self.image, self.image_taste)
        scale = (1 + sum(part**2 for part in parts)) ** 0.5
        middle = np.array([NormalDist().inv_cdf(accuracy) * scale for accuracy in self.accuracies])
        return middle[:, None, None] + (common + tastes)[:, None] + runs > 0, groups

    def study(self, random: np.random.Generator, seeds: int) -> tuple[dict[str, Correct], NDArray[np.intp]]:
        """A study of networks `0` (the baseline), `1`, …, for `compare`."""
        correct, groups = self.draw(random, seeds)
        return {str(arm): dict(enumerate(runs)) for arm, runs in enumerate(correct)}, groups


PLAN = """\
question: Do {networks} tell digits better than pooling does?
data: {{root: digits, group: '(artist[0-9]+)/'}}
recipe: demo/classify
skeleton: {{model: poolformer_n}}
mixers:
  pooling: pooling
  attention: attention
  dwconv: dwconv
  sepconv: sepconv
  hybrid: [pooling, pooling, attention, attention]
  cycle: cycle_mlp
baseline: pooling
learning_rates: [0.0005, 0.001, 0.002, 0.004, 0.008]
sweep_seeds: [100, 101]
seeds: [{seeds}]
purpose: {purpose}
smallest_effect: 0.5
epochs: 5
robustness: [shift, rotation, size, corruption]
receptive_field: true
diagnostics: [same_different]
hypotheses: {{attention: better, dwconv: equivalent, sepconv: worse}}
transfer: {{epochs: 1, learning_rate: 0.001}}
exclusions: a loss that is not finite  # <as written>
"""
ACCURACIES = {
    "pooling": 0.88, "attention": 0.903, "dwconv": 0.8805, "sepconv": 0.886, "hybrid": 0.897, "cycle": 0.862,
    "control-repeat": 0.88, "control-shuffled_labels": 0.1, "control-identity": 0.81, "control-random": 0.835,
    "control-external": 0.875,
}  # fmt: skip
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine & <more>")


def write_study(root: Path, *, seeds: int = 5, images: int = 600, groups: int = 60, seed: int = 0) -> Path:
    """A study directory as if its runs had been trained; one run failed.

    Args:
        root: the directory.
        seeds: of the comparison.
        images: test images.
        groups: of test images.
        seed: of all random numbers.
    """
    random, folder = np.random.default_rng(seed), StudyDir(root)
    root.mkdir(parents=True)
    numbers = ", ".join(map(str, range(seeds)))
    purpose = "confirmatory" if seeds >= 10 else "exploratory" if seeds >= 5 else "pilot"
    folder.plan.write_text(PLAN.format(networks="convolution and attention", seeds=numbers, purpose=purpose))
    population = Population(
        tuple(ACCURACIES.values()), images, groups, seed=0.03, group_taste=0.05, image_taste=0.4
    )
    correct, clusters = population.draw(random, seeds)
    labels = random.integers(0, len(CLASSES), images)
    arms = [_arm(name, number) for number, name in enumerate(ACCURACIES)]
    _write_head(folder, arms)
    paths = [f"test/artist{clusters[i]}/{i}.png" for i in range(images)]
    test_set = {
        "images": paths,
        "labels": labels.tolist(),
        "clusters": clusters.tolist(),
        "class_names": CLASSES,
    }
    folder.test_set.write_text(json.dumps(test_set))
    for arm, runs in zip(arms, correct, strict=True):
        _write_sweep(folder, arm, random)
        _write_costs(folder, arm)
        for number, right in enumerate(runs[:2] if arm.control == "shuffled_labels" else runs):
            _write_run(folder, arm, number, right, labels, random)
        if arm.control is None:
            _write_measurements(folder, arm, random)
    return root


def _arm(name: str, number: int) -> Arm:
    control = name.removeprefix("control-") if name.startswith("control-") else None
    mixer = "pooling" if control in ("repeat", "shuffled_labels") else control or name
    mixers = () if control == "external" else (mixer,) * 4
    changed = () if mixer == "pooling" else (f"dims: (32, 64, 128, 256) to (30, 60, 120, {240 - number})",)
    return Arm(
        name=name, mixers=mixers, control=control, changed=changed, parameters=2_000_000 + 3000 * number
    )


def _write(file: Path, record: Serializable | Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record.to_dict() if isinstance(record, Serializable) else record))


def _write_head(folder: StudyDir, arms: Sequence[Arm]) -> None:
    machine = {"device": "cpu: a processor", "threads": 2, "pytorch": "2.15.0", "python": "3.13.1"}
    head = {
        "schema": SCHEMA,
        "plan_sha256": read_plan(folder.plan).sha256,
        "created": "2026-12-01T12:00:00+00:00",
        "machine": machine,
        "versions": {"metaformer": "0.1.0", "torch": "2.15.0"},
        "arms": [arm.to_dict() for arm in arms],
    }
    _write(folder.head, head)


def _write_sweep(folder: StudyDir, arm: Arm, random: np.random.Generator) -> None:
    """Validation accuracy is best at a rate that differs between arms, of `cycle` at the highest."""
    if arm.control in ("repeat", "shuffled_labels"):
        return
    best = 0.008 if arm.name == "cycle" else random.choice([0.001, 0.002, 0.004])
    for rate in (0.0005, 0.001, 0.002, 0.004, 0.008):
        for seed in (100, 101):
            score = 100 * ACCURACIES[arm.name] - 1.5 * abs(np.log2(rate / best)) + random.normal(0, 0.2)
            run = RunResult(
                name=f"sweep-{arm.name}-lr{rate!r}-seed{seed}", arm=arm.name, role="sweep",
                learning_rate=rate, seed=seed, validation=float(score),
            )  # fmt: skip
            _write(folder.record("results", run.name), run)


def _write_costs(folder: StudyDir, arm: Arm) -> None:
    if arm.control in ("repeat", "shuffled_labels"):
        return
    slow = {"attention": 2.2, "hybrid": 1.5, "cycle": 1.8, "sepconv": 1.3}.get(arm.name, 1.0)
    costs = [
        Cost(
            image_size=size, macs=int(4000 * size**2 * slow), latency_1=2.1 * slow * size / 64,
            latency_8=9.7 * slow * size / 64,
            inference_memory=int(size**2 * 3000 * slow), training_memory=int(size**2 * 20000 * slow),
        )
        for size in (64, 128)
    ]  # fmt: skip
    _write(folder.record("costs", arm.name), ArmCosts(arm=arm.name, costs=tuple(costs)))


def _write_run(
    folder: StudyDir,
    arm: Arm,
    seed: int,
    right: NDArray[np.bool_],
    labels: NDArray[np.int64],
    random: np.random.Generator,
) -> None:
    others = (labels + random.integers(1, len(CLASSES), len(labels))) % len(CLASSES)
    predicted = np.where(right, labels, others).astype(np.int32)
    run = RunResult(
        name=f"final-{arm.name}-seed{seed}", arm=arm.name, role="control" if arm.control else "final",
        learning_rate=0.002, seed=seed, validation=float(100 * right.mean()), test=float(100 * right.mean()),
    )  # fmt: skip
    if arm.name == "sepconv" and seed == 3:
        run = replace(run, validation=None, test=None, error="step 120: the loss is not finite <nan>")
    else:
        folder.predictions(run.name).parent.mkdir(exist_ok=True)
        probability = random.uniform(0.3, 1, len(labels)).astype(np.float32)
        save_file({"predicted": predicted, "probability": probability}, folder.predictions(run.name))
    _write(folder.record("results", run.name), run)


def _write_measurements(folder: StudyDir, arm: Arm, random: np.random.Generator) -> None:
    run, width = f"final-{arm.name}-seed0", 4 + 3 * len(arm.name)
    away = np.abs(np.arange(64) - 32)
    scores = np.exp(-(away[:, None] ** 2 + away[None] ** 2) / width**2).astype(np.float32)
    folder.receptive_field(run).parent.mkdir(exist_ok=True)
    save_file({"scores": scores}, folder.receptive_field(run))
    top = 100 * ACCURACIES[arm.name]
    levels: dict[PerturbationKind, tuple[float, ...]] = {
        "shift": (0, 4, 8), "rotation": (-15, 0, 15), "size": (32, 64, 128), "corruption": (1, 3, 5),
    }  # fmt: skip
    accuracies = tuple(
        PerturbedAccuracy(
            kind=kind, name=name, level=level, accuracy=top - abs(level - chosen[1]) * random.uniform(0, 0.4)
        )
        for kind, chosen in levels.items()
        for name in (("gaussian_noise", "fog") if kind == "corruption" else (kind,))
        for level in chosen
    )
    squares = tuple(Square(share=s, side=width + int(40 * s), ratio=s / 4) for s in (0.5, 0.95))
    robustness = Robustness(run=run, arm=arm.name, seed=0, accuracies=accuracies)
    _write(folder.record("robustness", run), robustness)
    size = FieldSize(run=run, arm=arm.name, seed=0, squares=squares)
    _write(folder.record("receptive_fields", run), size)
    for demand in (2, 8, 16):
        accuracy = 50 + 45 * min(1.0, width / demand / 4)
        one = Diagnostic(
            arm=arm.name, seed=0, task="same_different", demand=demand, accuracy=accuracy, chance=50
        )
        _write(folder.record("diagnostics", f"{arm.name}-{demand}"), one)
    if arm.name != "pooling":
        _write(
            folder.record("transfer", arm.name),
            TransferResult(arm=arm.name, seed=0, swapped=31.0, tuned=top - 1),
        )
