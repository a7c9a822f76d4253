"""`metaformer predict RUN|CHECKPOINT|MODEL INPUT…`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaformer.cli.options import add_options, add_task_options, options_of
from metaformer.cli.parser import Parser, say

if TYPE_CHECKING:
    from metaformer.inference.predictor import Predictor

EXAMPLE = """metaformer predict runs/demo-classify photo.jpg folder/ 'more/*.png' --out predictions.csv --draw
  metaformer predict runs/demo-segment photos/ clip.gif --out found --draw --scales 0.75,1,1.25 --flip
  metaformer predict runs/demo-detect photos/ --out found --draw --coco --score 0.5 --classes cat,dog"""


def run(argv: list[str]) -> int:
    """Predict on images, folders, videos or a whole data set."""
    from metaformer.deploy.optimize import optimize
    from metaformer.inference.evaluate import check_options, task_options
    from metaformer.inference.predictor import Predictor
    from metaformer.process import print_anywhere, printable

    parser = _parser()
    args = vars(parser.parse_args(argv))
    outputs = {name: args.pop(name) for name in task_options("write") if name in args}
    _check(parser, args, outputs)
    parser.run_import(args)
    common = {option.name: args[option.name] for option in options_of(Predictor, skip=("rewrite", "task"))}
    options = {name: args[name] for name in task_options("predictor") if name in args}
    rewrite = optimize if args["optimize"] else None
    predictor = Predictor(args["source"], args["checkpoint"], **common, rewrite=rewrite, **options)
    if args["data"]:
        return _predict_all(predictor, args)
    model = predictor.model
    check_options("write", model, outputs)
    if not args["out"]:
        print_anywhere(signs=False)  # lines of JSON
    for line in model.spec.write(predictor.predictions(args["inputs"]), args["out"], model, **outputs):
        if args["out"]:
            say(line)
        else:  # where nobody reads any more, there is nothing left to do
            print(printable(line))
    if predictor.skipped:
        files = ", ".join(str(error.path) for error in predictor.skipped)
        print(f"left out {len(predictor.skipped)} images that cannot be read: {files}", file=sys.stderr)
    return 0


def _parser() -> Parser:
    from metaformer.inference.predictor import Predictor

    parser = Parser(
        "predict",
        "Predict on images with a run, a checkpoint or a published model: classes, label maps or objects.",
        EXAMPLE,
    )
    parser.add_source()
    add = parser.add_argument
    kinds = "image, folder (with those inside it), glob; for segmentation and detection also a video"
    add("inputs", nargs="*", metavar="INPUT", help=kinds)
    add(
        "--data",
        metavar="DIR|URL",
        help="instead of INPUT, a whole data set: shards or an image folder; --out is then a folder with one "
        "file for each process of torchrun, and the same command resumes after a stop",
    )
    add("--split", default="val", metavar="NAME", help="split of --data (default val)")
    add(
        "--out",
        metavar="DIR|FILE",
        help="a folder, or for classes a file FILE.jsonl or FILE.csv (default: print JSON lines)",
    )
    add(
        "--optimize", action="store_true", help="use the exact inference form of the network: for many images"
    )
    add_options(parser, list(options_of(Predictor, skip=("rewrite", "task"))))
    parser.add_import()
    add_task_options(parser, "predictor", "write")
    return parser


def _check(parser: Parser, args: dict[str, Any], outputs: dict[str, Any]) -> None:
    if args["optimize"] and args["amp"] != "none":
        parser.error("--optimize computes in the weights' own type: leave --amp out")
    if outputs and not args["out"]:
        parser.error(f"--{next(iter(outputs))} needs --out")
    if bool(args["inputs"]) == bool(args["data"]):
        parser.error("name images to predict on, or a whole data set with --data")
    if args["data"] and (outputs or not args["out"] or Path(args["out"]).suffix):
        parser.error(
            f"--data writes lines only: give a folder as --out, and no --{next(iter(outputs), 'draw')}"
        )


def _predict_all(predictor: "Predictor[Any]", args: dict[str, Any]) -> int:
    from metaformer.data.split import open_split
    from metaformer.distributed import Interrupted, find_world
    from metaformer.inference.batch import predict_all
    from metaformer.process import StopSignals

    source = open_split(args["data"], args["split"])
    skip_bad, data = args["on_bad_image"] == "skip", f"{args['data']} {args['split']}"
    world = find_world(args["device"])

    def explain() -> None:
        print("stopped by a signal; the same command resumes from here", file=sys.stderr, flush=True)

    with StopSignals() as stop, stop.protected(), stop.interruptible(explain):
        try:
            done = predict_all(
                predictor, source, args["out"], world, data=data, skip_bad=skip_bad, stop=stop.requested
            )
        except Interrupted:
            explain()
            return stop.exit_status
    say(f"{done.images} images ({done.before} of them before, {done.bad} bad): {done.file}")
    return 0
