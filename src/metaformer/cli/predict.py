"""`metaformer predict RUN|CHECKPOINT|MODEL INPUT…`."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from metaformer.cli.parser import Parser, numbers

if TYPE_CHECKING:
    from metaformer.inference.predictor import Predictor

OUTPUTS = {
    "images": ("classify", "segment", "detect"),
    "panoptic": ("segment",),
    "rle": ("segment",),
    "submission": ("segment",),
    "coco": ("detect",),
    "fps": ("segment", "detect"),
}
"""What is written only where it is asked for, and of which tasks."""
EXAMPLE = """metaformer predict runs/demo photo.jpg folder/ 'more/*.png' --out predictions.csv --images
  metaformer predict runs/segment photos/ clip.gif --out found --images --scales 0.75,1,1.25 --flip
  metaformer predict runs/detect photos/ --out found --images --coco --score 0.5 --only cat,dog"""


def run(argv: list[str]) -> int:
    """Tell the classes of images or of their pixels, or find objects."""
    parser = _parser()
    words = parser.parse_args(argv)
    _check(parser, words)
    parser.run_import(words)
    from metaformer.deploy.optimize import optimize
    from metaformer.inference.predictor import Predictor

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
        scales=numbers(words.scales, "--scales") if words.scales else None,
        slide=words.slide,
        score=words.score,
        only=[name.strip() for name in words.only.split(",")] if words.only else None,
        workers=words.workers,
        rewrite=optimize if words.optimize else None,
    )
    if words.data and predictor.task != "classify":
        parser.error("--data is for classification: name the folder of images as INPUT")
    if words.data:
        return _predict_all(predictor, words)
    for line in _written(predictor, words):
        print(line)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "predict",
        "Tell the classes of images or of their pixels, or find objects, with a run, a checkpoint or a "
        "published model.",
        EXAMPLE,
    )
    parser.add_source()
    add = parser.add_argument
    kinds = "image, folder (with those inside it) or glob; of pixels and objects also an animation or a video"
    add("inputs", nargs="*", metavar="INPUT", help=kinds)
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
        help="with --data: stop at an image that cannot be read, or write down why (up to 0.1 %% of all)",
    )
    add(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that read images, threads for pixels and objects (default 0)",
    )
    add(
        "--out",
        metavar="DIR|FILE",
        help="FILE.jsonl, FILE.csv, or a folder (default: print JSON lines); in segmentation a folder, for "
        "label maps as PNGs with a palette; in detection a folder",
    )
    add("--images", action="store_true", help="also draw the predictions on the images, beside --out")
    add(
        "--batch-size",
        type=int,
        default=32,
        metavar="N",
        help="images at once (default 32); one for pixels and objects",
    )
    add(
        "--optimize",
        action="store_true",
        help="first fold the network into its fastest exact form and compare the two: for many images",
    )
    parser.add_import()
    add = parser.add_argument_group("classification").add_argument
    add("--top-k", type=int, metavar="K", help="classes per image (default 5)")
    add = parser.add_argument_group("segmentation and detection").add_argument
    add("--scales", metavar="F,F,…", help="sizes to look at, such as 0.75,1,1.25")
    add("--fps", type=float, metavar="N", help="with --images: join all, as frames, to one animation")
    add = parser.add_argument_group("detection").add_argument
    add("--score", type=float, metavar="S", help="leave out objects with a lower score (default 0.3)")
    add("--only", metavar="CLASS,CLASS,…", help="tell objects of these classes only")
    add("--coco", action="store_true", help="also write all objects as COCO's results JSON")
    add = parser.add_argument_group("segmentation").add_argument
    add("--slide", type=int, metavar="PIXELS", help="look through windows of this side (0: no)")
    add("--panoptic", action="store_true", help="also write COCO's panoptic PNGs and JSON")
    add("--rle", action="store_true", help="also write COCO's run lengths as JSON")
    add("--submission", choices=["ade20k"], help="also write the zip that a benchmark's server takes")
    return parser


def _check(parser: Parser, words: Namespace) -> None:
    if words.optimize and words.amp != "none":
        parser.error("--optimize computes in the weights' own type: leave --amp out")
    asked = [f"--{name}" for name in OUTPUTS if getattr(words, name)]
    if asked and not words.out:
        parser.error(f"{asked[0]} needs --out: say where to")
    if bool(words.inputs) == bool(words.data):
        parser.error("name images to predict, or a whole data set with --data")
    if words.data and (asked or not words.out or Path(words.out).suffix):
        parser.error(
            f"--data writes lines only: give a folder as --out, and no {asked[0] if asked else '--images'}"
        )


def _written(predictor: "Predictor", words: Namespace) -> Iterator[str]:
    """Write what was asked for; lines to print."""
    from metaformer.inference.evaluate import only_for
    from metaformer.tasks.classification.write import write_predictions
    from metaformer.tasks.detection.write import DetectOutputs, write_detections
    from metaformer.tasks.segmentation.write import Outputs, write_segmentations

    for name, tasks in OUTPUTS.items():
        only_for(predictor.bundle, tasks, {f"--{name}": bool(getattr(words, name))})
    asked = {name: getattr(words, name) for name, tasks in OUTPUTS.items() if predictor.task in tasks}
    if predictor.task == "classify":
        found = predictor.classified(words.inputs)
        return write_predictions(found, words.out, images=words.images)
    if predictor.task == "detect":
        ids = predictor.bundle.category_ids
        return write_detections(predictor.seen(words.inputs), words.out, DetectOutputs(**asked), ids)
    return write_segmentations(predictor.seen(words.inputs), words.out, Outputs(**asked))


def _predict_all(predictor: "Predictor", words: Namespace) -> int:
    from metaformer.data.split import open_split
    from metaformer.distributed import Interrupted, find_world
    from metaformer.inference.batch import predict_all
    from metaformer.process import StopSignals

    source = open_split(words.data, words.split)
    skip_bad = words.on_bad_image == "skip"
    data = f"{words.data} {words.split}"
    world = find_world(words.device)
    with StopSignals() as stop:
        try:
            done = predict_all(
                predictor, source, words.out, world, data=data, skip_bad=skip_bad, stop=stop.requested
            )
        except Interrupted:
            print("stopped by a signal; the same command goes on from here", file=sys.stderr)
            return stop.exit_status
    print(f"{done.images} images ({done.before} of them before, {done.bad} bad): {done.file}")
    return 0
