"""`metaformer quantize RUN --data DIR --out DIR`."""

from metaformer.cli.parser import Parser, write_json

EXAMPLE = """metaformer quantize runs/demo-classify --out runs/demo-int8
  metaformer evaluate runs/demo-int8"""
BATCHES = (1, 8)
"""Images at once, in the measurement of speed."""


def run(argv: list[str]) -> int:
    """Write a classifier in int8, for CPUs, and tell what it lost and won."""
    parser = _parser()
    words = parser.parse_args(argv)
    if words.rounds < 0:
        parser.error(f"--rounds {words.rounds}: must be 0 or more")
    parser.run_import(words)
    from metaformer.deploy.int8.quantize import quantize

    report = quantize(
        words.source,
        words.data,
        words.out,
        checkpoint=words.checkpoint,
        classes=words.classes,
        image_size=words.image_size,
        images=words.images,
        calibrate_on=words.calibrate_on,
        split=words.split,
        max_drop=words.max_drop,
        batch_size=words.batch_size,
        workers=words.workers,
    )
    print(report.text())
    values = report.to_dict()
    try:
        if words.rounds:
            from metaformer.bench.int8_speed import measure_int8

            whose = {"checkpoint": words.checkpoint, "classes": words.classes, "file": words.file}
            speed = measure_int8(words.source, words.out, BATCHES, words.rounds, **whose)
            print(f"\n{speed.text()}")
            values["speed"] = speed.to_dict()
    finally:  # what it lost holds also where the speed cannot be measured
        if words.json:
            write_json(words.json, values)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "quantize",
        "Write a classifier in int8, for CPUs: NNCF finds the ranges of values on training images, "
        "OpenVINO runs it; evaluate and predict take the directory. Tells accuracy and speed of both.",
        EXAMPLE,
    )
    add = parser.add_argument
    kinds = "run, checkpoint or save_pretrained directory, or model name"
    add("source", metavar="RUN|CHECKPOINT|MODEL", help=kinds)
    add("--data", metavar="DIR", help="folder with the data set (default: the run's own)")
    add("--out", required=True, metavar="DIR", help="directory to write")
    add("--checkpoint", metavar="FILE", help="weights for a model name, in any published format")
    add("--classes", metavar="FILE", help="class names, one per line, where nothing else tells")
    add("--image-size", type=int, metavar="N", help="input height and width (default: the checkpoint's)")
    add("--images", type=int, default=300, metavar="N", help="images to calibrate on (default 300)")
    add(
        "--calibrate-on",
        metavar="NAME",
        help="split of these (default: the run's own for training, or train)",
    )
    add("--split", metavar="NAME", help="split to measure accuracy on (default: the run's own, or val)")
    add(
        "--max-drop",
        type=float,
        metavar="SHARE",
        help="largest loss of top-1 on the images to calibrate on, such as 0.01: products that hurt most "
        "go back to floating point; takes minutes (default: all in int8)",
    )
    add("--batch-size", type=int, default=32, metavar="N", help="images at once (default 32)")
    add("--workers", type=int, default=0, metavar="N", help="processes that read images (default 0)")
    add("--rounds", type=int, default=10, metavar="N", help="measurements of speed (default 10; 0: none)")
    parser.add_json()
    parser.add_import()
    return parser
