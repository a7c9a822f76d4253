"""Every network as an ONNX file and as OpenVINO's, compared with the network: a table that is kept."""

import json
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.program import run_program
from metaformer.bench.timing import processor
from metaformer.deploy.export.parity import Shape, results
from metaformer.deploy.export.source import ExportSource
from metaformer.deploy.export.write import draw_up, write_compared
from metaformer.errors import ConfigError, MetaFormerError
from metaformer.factory import create_detector, create_model, create_segmenter, list_models
from metaformer.inference.exported import RUNTIMES
from metaformer.layers.scale import Scale
from metaformer.mixers import MIXERS
from metaformer.models.detection.config import KINDS
from metaformer.models.segmentation.config import HEAD_DIMS
from metaformer.storage import write_text
from metaformer.tasks.exported import ExportCard, ExportOptions

DESCRIPTION = (
    "Exports networks with random weights to ONNX and OpenVINO, and compares each file with its network.\n"
    "All of them take hours: every model, every mixer, and five dense networks on three backbones."
)
EXAMPLE = """  python -m benchmarks.export_matrix --networks 'poolformer_*'
  python -m benchmarks.export_matrix --record"""
RECORD: Final = Path(__file__).with_name("exports.json")
FORMATS: Final = {".onnx": "ONNX", ".xml": "OpenVINO"}
BACKBONES: Final = ("poolformer_s12", "cyclemlp_b1", "caformer_s18")
"""Backbones of the dense networks."""
MIXER_OPTIONS: Final = ("window_attention(shift=3)", "spatial_reduction_attention(linear=True)")
"""Mixers whose options are other operations."""
SIZES: Final = ((224, 224), (256, 320), (225, 319), (512, 384))
"""Height and width of images that are compared, beside the smallest."""
BATCHES: Final = (1, 2, 5)
PACKAGES: Final = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")
SCALE: Final = 0.1
"""Smallest LayerScale."""
CLOSE: Final = 1e-4
"""Largest difference of probabilities, relative to the largest."""
HEAD: Final = ("network", "file", "probabilities", "decisions", "boxes", "scores", "masks", "seconds")


@dataclass(frozen=True)
class Case:
    """A network of the matrix."""

    name: str
    build: Callable[[], nn.Module]


@dataclass(frozen=True)
class Row:
    """A network in a format."""

    network: str
    format: str
    seconds: float
    """Processor time of tracing, writing and comparing, as `metaformer export` does it."""
    probabilities: float | None = None
    """Largest difference of classifiers and segmenters, relative to the largest probability."""
    decisions: float | None = None
    """Share of images, pixels or objects whose class is the same."""
    boxes: float | None = None
    """Largest difference of detectors, in pixels."""
    scores: float | None = None
    masks: float | None = None
    """Largest difference of mask probabilities."""
    failure: str = ""
    """Why there is no such file."""

    def cells(self) -> tuple[str, ...]:
        """The row as texts, under `HEAD`."""
        names = self.network, self.format
        if self.failure:
            return (*names, self.failure, *[""] * (len(HEAD) - 3))
        same = None if self.decisions is None else f"{self.decisions:.2%}"
        values = (self.probabilities, same, self.boxes, self.scores, self.masks)
        shown = (
            "–" if value is None else value if isinstance(value, str) else f"{value:.0e}" for value in values
        )
        return (*names, *shown, f"{self.seconds:.0f}")


def cases() -> tuple[Case, ...]:
    """Every model, every mixer, and every dense network on three backbones."""
    classifiers = (Case(name, partial(create_model, name, num_classes=10)) for name in list_models())
    mixers = (Case(f"mixer {name}", partial(_mixer, name)) for name in (*MIXERS, *MIXER_OPTIONS))
    dense = (
        Case(f"{kind} {backbone}", partial(_dense, kind, backbone))
        for kind in (*HEAD_DIMS, *KINDS)
        for backbone in BACKBONES
    )
    return (*classifiers, *mixers, *dense)


def _mixer(name: str) -> nn.Module:
    """A small network of one mixer."""
    tiny: dict[str, Any] = {"depths": (1,) * 4, "dims": (24,) * 4, "image_size": (64, 64)}
    return create_model("poolformer_n", num_classes=10, mixers=(name,) * 4, **tiny)


def _dense(kind: str, backbone: str) -> nn.Module:
    if kind in HEAD_DIMS:
        return create_segmenter(kind, backbone=backbone, num_classes=5)
    # of a thousand random boxes some always overlap by the threshold, but for rounding
    few: dict[str, Any] = {"rpn_pre_nms_topk": 50, "rpn_post_nms_topk": 50}
    detector = create_detector(kind, backbone=backbone, num_classes=5, **few)
    _find_something(detector)
    return detector


@torch.no_grad()
def _find_something(detector: nn.Module) -> None:
    """Set weights with which a detector that is not trained finds objects of different scores."""
    for name, value in detector.named_parameters():
        if value.ndim == 1:
            value.fill_(-4.0) if name.startswith("head.classification_head.cls") else None
        elif name.startswith("head.") and ".conv." in name:
            nn.init.kaiming_normal_(value)
        elif "cls_logits" in name:
            value.normal_(std=0.02)
        elif "cls_score" in name:
            value.normal_(std=0.05)
        elif "bbox" in name:
            value.normal_(std=0.01)


def measure(case: Case, folder: Path) -> Iterator[Row]:
    """Export a network to each format, in a folder.

    Raises:
        MetaFormerError: it has no such form, or a file differs from it.
    """
    torch.manual_seed(0)
    network = case.build().eval()
    for module in network.modules():
        if isinstance(module, Scale):  # initial ones of 1e-5 would hide what a block computes
            module.scale.data.clamp_(min=SCALE)
    source = ExportSource.of_network(network)
    begun = process_time()
    draft = draw_up(source, ExportOptions(probabilities="probabilities" in source.task.options))
    traced = process_time() - begun
    for suffix in RUNTIMES:
        begun, file = process_time(), folder / f"network{suffix}"
        card = write_compared(draft, file, lambda step: None)
        row = Row(case.name, FORMATS[suffix], traced + process_time() - begun)
        if source.task.forward_takes_sizes:  # compared on three padded batches
            found = card.parity
            yield replace(
                row,
                decisions=1 - found["objects"],
                boxes=found["boxes"],
                scores=found["scores"],
                masks=found["masks"] if "masks" in card.outputs else None,
            )
        else:
            probabilities, decisions = _compared(draft.source, file, card)
            yield replace(row, probabilities=probabilities, decisions=decisions)


def _compared(source: ExportSource, file: Path, card: ExportCard) -> tuple[float, float]:
    """`Row.probabilities` and `Row.decisions` on `SIZES` and the smallest."""
    worst, same, weight = 0.0, 0.0, 0
    for shape, expected, found in results(source, file, card, _shapes(card)):
        worst = max(worst, _relative(expected, found))
        same += source.task.agreement(expected, found) * shape[0]
        weight += shape[0]
    return worst, same / weight


def _shapes(card: ExportCard) -> Iterator[Shape]:
    """Batch, height and width: each size once, each batch at least once."""
    least = card.min_size
    sizes = [card.image_size] * len(BATCHES) if card.image_size else [(least, least), *SIZES]
    for i, (height, width) in enumerate(sizes):
        yield BATCHES[i % len(BATCHES)], max(least, height), max(least, width)


def _relative(expected: Tensor, found: Tensor) -> float:
    if expected.ndim == 4:  # logits of a segmenter, which the file resizes to the images
        expected = F.interpolate(expected, found.shape[2:], mode="bilinear", align_corners=False)
    theirs, ours = expected.softmax(1), found.softmax(1)
    return ((theirs - ours).abs().max() / theirs.max()).item()


def problem(row: Row) -> str:
    """What of a row is more than it may be: empty for none; detectors are refused by the export itself."""
    if row.failure:
        return row.failure
    if row.probabilities is not None and row.probabilities > CLOSE:
        return f"probabilities differ by {row.probabilities:.1e} of the largest"
    if row.decisions is not None and row.decisions < 1 - CLOSE:
        return f"{row.decisions:.3%} of the decisions are the same"
    return ""


def table(rows: Iterable[Row]) -> str:
    """The rows in Markdown, in columns of one width."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    )


def read_record(file: Path = RECORD) -> tuple[dict[str, Any], list[Row]]:
    """What the figures were measured with, and the rows."""
    values = json.loads(file.read_text())
    return values["with"], [Row(**row) for row in values["rows"]]


def record(rows: Iterable[Row], file: Path) -> None:
    """Write rows over those of the same networks, and keep the others where all programs are the same.

    Raises:
        OutputError: the file cannot be written.
    """
    own = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in PACKAGES},
    }
    before, old = ({}, []) if not file.exists() else read_record(file)
    kept = {(row.network, row.format): row for row in [*(old if before == own else []), *rows]}
    order = [(case.name, format) for case in cases() for format in FORMATS.values()]
    values = {"with": own, "rows": [asdict(kept[key]) for key in order if key in kept]}
    write_text(file, json.dumps(values, indent=1) + "\n")


def run(args: Namespace) -> int:
    """Measure networks, print their table, and keep it."""
    chosen = [case for case in cases() if any(fnmatch(case.name, pattern) for pattern in args.networks)]
    if not chosen:
        raise ConfigError(f"networks: none is named {' or '.join(args.networks)}")
    rows: list[Row] = []
    interrupted = False
    try:
        for case in chosen:
            rows += _rows(case)
            if args.record:
                record(rows, args.record)
    except KeyboardInterrupt:  # what there is by then is printed
        interrupted = True
    print(table(rows))
    problems = [f"{row.network}, {row.format}: {problem(row)}" for row in rows if problem(row)]
    print("\n".join([f"{len(rows)} files, {len(problems)} that are not as their network", *problems]))
    return 130 if interrupted else int(bool(problems))


def _rows(case: Case) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for row in measure(case, Path(folder)):
                print("  ".join(row.cells()), flush=True)
                rows.append(row)
        except MetaFormerError as error:
            missing = list(FORMATS.values())[len(rows) :]
            rows += [Row(case.name, format, 0.0, failure=str(error)) for format in missing]
    return rows


def add_options(parser: ArgumentParser) -> None:
    """Add the options of this benchmark."""
    add = parser.add_argument
    add("--networks", nargs="+", default=["*"], metavar="PATTERN", help="of these names (default: all)")
    text = "keep the rows there (default: benchmarks/exports.json)"
    add("--record", nargs="?", const=RECORD, type=Path, metavar="FILE", help=text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    return run_program("benchmarks.export_matrix", DESCRIPTION, EXAMPLE, add_options, run, argv)


if __name__ == "__main__":
    sys.exit(main())
