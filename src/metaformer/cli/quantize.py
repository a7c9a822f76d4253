"""`metaformer quantize RUN --data DIR --out DIR`."""

from metaformer.cli.options import add_options, options_of
from metaformer.cli.parser import Parser, say, write_json

EXAMPLE = """metaformer quantize runs/demo-classify --out runs/demo-int8
  metaformer evaluate runs/demo-int8"""
BATCHES = (1, 8)
"""Batch sizes of the speed measurement."""


def run(argv: list[str]) -> int:
    """Quantize a classifier to int8 for CPUs, and report its accuracy and speed."""
    from metaformer.deploy.int8.quantize import quantize

    parser = Parser(
        "quantize",
        "Quantize a classifier to int8 for CPUs: NNCF calibrates on training images, OpenVINO runs the\n"
        "result; evaluate and predict take the directory. Reports accuracy and speed of both networks.",
        EXAMPLE,
    )
    parser.add_source()
    add = parser.add_argument
    add("--data", metavar="DIR", help="folder of the data set (default: the run's own)")
    add("--out", required=True, metavar="DIR", help="directory to write")
    add_options(parser, list(options_of(quantize, skip=("checkpoint",))))
    add("--rounds", type=int, default=10, metavar="N", help="measurements of speed (default 10; 0: none)")
    parser.add_json()
    parser.add_import()
    args = vars(parser.parse_args(argv))
    if args["rounds"] < 0:
        parser.error(f"--rounds {args['rounds']}: must be 0 or more")
    parser.run_import(args)
    rounds, file, mixers = args.pop("rounds"), args.pop("json"), args.pop("import_files")
    source, data, out = args.pop("source"), args.pop("data"), args.pop("out")
    report = quantize(source, data, out, **args)
    values = report.to_dict()
    if file:  # the accuracy holds also where the speed cannot be measured
        write_json(file, values)
    say(report.text())
    if rounds:
        from metaformer.bench.int8_speed import measure_int8

        own = {"checkpoint": args["checkpoint"], "class_names": args["class_names"], "file": mixers}
        speed = measure_int8(source, out, BATCHES, rounds, **own)
        values["speed"] = speed.to_dict()
        if file:
            write_json(file, values)
        say(f"\n{speed.text()}")
    return 0
