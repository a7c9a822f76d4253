"""Speed of exported files in OpenVINO: ours beside its own conversion of timm's network, and in int8."""

import json
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

import numpy as np
import torch

from benchmarks.program import run_program
from metaformer.bench.exports import BATCHES, SIDE, measure_forms
from metaformer.bench.timing import Timing, ratios
from metaformer.deploy.export.source import ExportSource
from metaformer.deploy.export.write import Draft, draw_up, save_openvino, write_compared
from metaformer.deploy.int8.graph import OpenVINOGraph
from metaformer.errors import ConfigError, MissingPackage, OptimizeError
from metaformer.factory import create_model
from metaformer.inference.exported import INT8, load_openvino, open_exported
from metaformer.storage import write_text
from metaformer.tasks.exported import ExportOptions

DESCRIPTION = (
    "Times the file that metaformer export writes, OpenVINO's conversion of timm's network, and our file in\n"
    "int8, each in a process of its own, in alternating rounds. Weights are random, images 224×224."
)
EXAMPLE = """  python -m benchmarks.export_speed
  python -m benchmarks.export_speed --model caformer_s18 --batches 1 --rounds 20"""
TIMM, OURS, QUANTIZED = "timm", "ours", "int8"
CLAIMS: Final = ((OURS, TIMM, 1.0), (QUANTIZED, OURS, 1.6))
"""Which file is compared with which, and the ratio to reach."""
IMAGES: Final = 32
"""Of the calibration."""
CLOSE: Final = 1e-3
"""Largest difference of timm's logits, relative to the largest."""


@dataclass(frozen=True)
class Comparison:
    """A file beside another one."""

    batch: int
    ours: str
    theirs: str
    milliseconds: tuple[float, float]
    """Of an image in the fastest round."""
    minima: float
    """Ratio of the fastest rounds."""
    quartiles: tuple[float, float, float]
    """Of the ratios, round by round; the second is the median."""
    target: float

    @classmethod
    def of(cls, timings: Mapping[str, Timing], ours: str, theirs: str, target: float) -> "Comparison":
        """From the rounds of both."""
        own, other = timings[ours], timings[theirs]
        milliseconds = tuple(1000 * timing.minimum / own.batch for timing in (own, other))
        low, middle, high = quantiles(ratios(own, other))
        minima = other.minimum / own.minimum
        return cls(own.batch, ours, theirs, milliseconds, minima, (low, middle, high), target)  # type: ignore[arg-type]

    def text(self) -> str:
        """One line."""
        low, middle, high = self.quartiles
        reached = "reached" if min(self.minima, middle) >= self.target else "missed"
        return (
            f"batch {self.batch}: {self.ours} {self.milliseconds[0]:.2f} ms, {self.theirs} "
            f"{self.milliseconds[1]:.2f} ms an image; minima {self.minima:.2f} ×, median of pairs "
            f"{middle:.2f} × ({low:.2f} to {high:.2f}); target {self.target} ×: {reached}"
        )


def compare(model: str, batches: Sequence[int], rounds: int) -> tuple[str, list[Comparison]]:
    """The conditions, and the comparisons at each batch size.

    Raises:
        ConfigError: timm has no such model, or fewer than two rounds.
        MissingPackage: timm, OpenVINO or NNCF is not installed.
    """
    if rounds < 2:
        raise ConfigError(f"rounds: {rounds} must be at least 2")
    draft = draw_up(ExportSource.of_network(create_model(model).eval()), ExportOptions())
    found, conditions = [], ""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{name}.xml") for name in (TIMM, OURS, QUANTIZED)}
        write_compared(draft, files[OURS], lambda step: None)
        _write_int8(draft, files[QUANTIZED])
        for batch in batches:
            _write_timm(model, batch, draft, files[TIMM])
            speed = measure_forms(model, files, batches=(batch,), rounds=rounds, size=(SIDE, SIDE))
            timings = {name: timing[batch] for name, timing in speed.timings.items()}
            found += [Comparison.of(timings, *claim) for claim in CLAIMS]
            conditions = (
                f"{speed.machine.device}, {speed.machine.threads} threads; {speed.machine.instructions}"
            )
    return conditions, found


def _write_timm(model: str, batch: int, draft: Draft, file: Path) -> None:
    """OpenVINO's conversion of timm's network for a number of images, normalized ones.

    Raises:
        OptimizeError: it computes something else.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingPackage("timm", None, "a comparison with its networks") from error
    if not timm.is_model(model):
        raise ConfigError(f"model: timm has no {model}")
    network, images = timm.create_model(model).eval(), torch.randn(batch, 3, SIDE, SIDE)
    with torch.no_grad():
        logits = network(images)
        graph: Any = load_openvino().convert_model(torch.export.export(network, (images,)))
    graph.inputs[0].get_tensor().set_names({"images"})
    graph.outputs[0].get_tensor().set_names(set(draft.card.outputs))
    save_openvino(file, graph, replace(draft.card, input="float", batch=batch, image_size=(SIDE, SIDE)))
    (computed,) = open_exported(file)[0].run({"images": images.numpy()}).values()
    difference = np.abs(computed - logits.numpy()).max() / np.abs(logits.numpy()).max()
    if not difference <= CLOSE:
        raise OptimizeError(f"{model}: OpenVINO's conversion of timm's network differs by {difference:.1e}")


def _write_int8(draft: Draft, file: Path) -> None:
    """Our file in int8, calibrated on noise: its speed does not depend on the images."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (IMAGES, 1, SIDE, SIDE, 3), dtype=np.uint8)
    graph = OpenVINOGraph.read(draft.body).quantized([{"images": image} for image in images], [], None)
    graph.write(file, replace(draft.card, dtype=INT8))


def run(args: Namespace) -> int:
    """Measure, and print it."""
    conditions, found = compare(args.model, args.batches, args.rounds)
    print("\n".join([conditions, *(comparison.text() for comparison in found)]))
    if args.json:
        values = {"conditions": conditions, "comparisons": [vars(comparison) for comparison in found]}
        write_text(args.json, json.dumps(values, indent=1) + "\n")
    return 0


def add_options(parser: ArgumentParser) -> None:
    """Add the options of this benchmark."""
    add = parser.add_argument
    add("--model", default="poolformer_s12", help="a model that timm has, too (default poolformer_s12)")
    add(
        "--batches",
        type=int,
        nargs="+",
        default=list(BATCHES),
        metavar="N",
        help="images at once (default 1 8)",
    )
    add("--rounds", type=int, default=30, metavar="N", help="measurements of each (default 30)")
    add("--json", type=Path, metavar="FILE", help="write the figures there")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    return run_program("benchmarks.export_speed", DESCRIPTION, EXAMPLE, add_options, run, argv)


if __name__ == "__main__":
    sys.exit(main())
