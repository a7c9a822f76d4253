"""`metaformer predict RUN|CHECKPOINT|MODEL INPUT…`."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from metaformer.cli.parser import Parser

if TYPE_CHECKING:
    from metaformer.engine.predict import Predictor

EXAMPLE = "metaformer predict runs/demo photo.jpg folder/ 'more/*.png' --out predictions.csv --pictures"


def run(argv: list[str]) -> int:
    """Classify pictures."""
    parser = Parser("predict", "Classify pictures with a run, a checkpoint or a published model.", EXAMPLE)
    parser.add_source()
    add = parser.add_argument
    add("inputs", nargs="*", metavar="INPUT", help="picture, folder (with those inside it) or glob")
    add(
        "--data",
        metavar="DIR|ADDRESS",
        help="instead of INPUT, a whole data set: shards or an image folder; --out is then a folder with one "
        "file for each process of torchrun, and the same command goes on after a stop",
    )
    add("--split", default="val", metavar="NAME", help="split of --data (default val)")
    add(
        "--on-bad-image",
        choices=["error", "skip"],
        default="error",
        help="with --data: stop at a picture that cannot be read, or write down why (up to 0.1 %% of all)",
    )
    add("--workers", type=int, default=0, metavar="N", help="processes that read pictures (default 0)")
    add("--out", metavar="DIR|FILE", help="FILE.jsonl, FILE.csv, or a folder (default: print JSON lines)")
    add("--pictures", action="store_true", help="also draw the predictions on the pictures, beside --out")
    add("--top-k", type=int, default=5, metavar="K", help="classes per picture (default 5)")
    add("--batch-size", type=int, default=32, metavar="N", help="pictures at once (default 32)")
    parser.add_import()
    words = parser.parse_args(argv)
    if words.pictures and not words.out:
        parser.error("--pictures needs --out: say where to")
    if bool(words.inputs) == bool(words.data):
        parser.error("name pictures to predict, or a whole data set with --data")
    if words.data and (words.pictures or not words.out or Path(words.out).suffix):
        parser.error("--data writes lines only: give a folder as --out, and no --pictures")
    parser.run_import(words)
    from metaformer.engine.predict import Predictor
    from metaformer.engine.predictions import write_predictions

    predictor = Predictor(
        words.source,
        words.checkpoint,
        classes=words.classes,
        image_size=words.image_size,
        device=words.device,
        amp=words.amp,
        batch_size=words.batch_size,
        top_k=words.top_k,
        flip=words.flip,
        crops=words.crops,
        workers=words.workers,
    )
    if words.data:
        return _predict_all(predictor, words)
    for line in write_predictions(predictor.stream(words.inputs), words.out, pictures=words.pictures):
        print(line)
    return 0


def _predict_all(predictor: "Predictor", words: Namespace) -> int:
    from metaformer.data.split import open_split
    from metaformer.engine.bulk import predict_all
    from metaformer.engine.distributed import find_world
    from metaformer.engine.signals import StopSignals
    from metaformer.ops.ranks import Interrupted

    source = open_split(words.data, words.split)
    skip_bad = words.on_bad_image == "skip"
    data = f"{words.data} {words.split}"
    world = find_world(words.device)
    with StopSignals() as stop:
        try:
            done = predict_all(
                predictor, source, words.out, world, data=data, skip_bad=skip_bad, stop=stop.asked
            )
        except Interrupted:
            print("stopped by a signal; the same command goes on from here", file=sys.stderr)
            return stop.exit_status
    print(f"{done.pictures} pictures ({done.before} of them before, {done.bad} bad): {done.file}")
    return 0
