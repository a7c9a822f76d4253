"""The command line of `python -m benchmarks.loading`."""

import argparse
import json
from pathlib import Path

from benchmarks.loading.measuring import measure_loading
from benchmarks.loading.settings import PIPELINES, LoadingConfig
from metaformer.storage import write_text

DESCRIPTION = (
    "Images per second of our loader, timm's and torchvision's in turn, and whether a model waits for them."
)
EXAMPLE = """  python -m benchmarks.loading
  python -m benchmarks.loading --root imagenet/val --workers 8 --batch 128
  python -m benchmarks.loading --pipelines train --model-speed 2500 --json data.json"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what `run` reads."""
    add, config = parser.add_argument, LoadingConfig()
    add("--root", type=Path, metavar="DIR", help="images in it and below (default: some are made)")
    add("--images", type=int, default=config.images, metavar="N", help="read in a round (default 512)")
    add(
        "--pipelines",
        nargs="+",
        default=list(PIPELINES),
        metavar="NAME",
        help="; ".join(f"{name}: {what}" for name, what in PIPELINES.items()),
    )
    add("--batch", type=int, default=config.batch, metavar="N", help="images in a batch (default 64)")
    add("--size", type=int, default=config.size, metavar="N", help="height and width (default 224)")
    add("--workers", type=int, metavar="N", help="processes that make them (default: one for each core)")
    add("--rounds", type=int, default=config.rounds, metavar="N", help="measurements (default 10)")
    add("--device", default=config.device, help="where batches go and the model is: auto, cpu, cuda, cuda:N")
    add("--model", default=config.model, help="whose training step is measured (default poolformer_s12)")
    add("--model-speed", type=float, metavar="X", help="images per second, instead of measuring a model")
    add("--step-batch", type=int, metavar="N", help="images of a step (default: 8 on a CPU, else --batch)")
    add("--json", metavar="FILE", help="write everything there; - for standard output, without the page")


def run(words: argparse.Namespace) -> int:
    """Measure, print, and return the exit status: 0 also where the loader is the bottleneck.

    Raises:
        MetaFormerError: something the user can mend.
    """
    report = measure_loading(
        LoadingConfig(
            root=words.root,
            images=words.images,
            pipelines=tuple(words.pipelines),
            batch=words.batch,
            size=words.size,
            workers=words.workers,
            rounds=words.rounds,
            device=words.device,
            model=words.model,
            model_speed=words.model_speed,
            step_batch=words.step_batch,
        )
    )
    text = json.dumps(report.to_dict(), indent=1) + "\n"
    print(text if words.json == "-" else report.text())
    if words.json and words.json != "-":
        write_text(Path(words.json), text)
    return 0
