"""`metaformer quantize RUN --data DIR --out FILE.xml|FILE.onnx`."""

from metaformer.cli.options import add_options, options_of
from metaformer.cli.parser import Parser, say, say_step, write_json

EXAMPLE = """metaformer quantize runs/demo-classify --out int8.xml
  metaformer evaluate int8.xml --data data/demo/classify
  metaformer quantize runs/demo-detect --out int8.onnx --max-drop 0.01"""


def run(argv: list[str]) -> int:
    """Quantize a network to a file in int8 for CPUs, and report its metric and speed."""
    from metaformer.deploy.int8.quantize import quantize

    parser = Parser(
        "quantize",
        "Quantize a network to int8 for CPUs, calibrated on training images: .xml for OpenVINO (by NNCF)\n"
        "or .onnx for ONNX Runtime, with what metaformer export writes beside the weights; evaluate and\n"
        "predict take the file. Reports metric, size and speed of both networks.",
        EXAMPLE,
    )
    parser.add_source()
    add = parser.add_argument
    add("--data", metavar="DIR", help="folder of the data set (default: the run's own)")
    add("--out", required=True, metavar="FILE.xml|FILE.onnx", help="file to write")
    add_options(parser, list(options_of(quantize, skip=("checkpoint", "on_step"))))
    add("--rounds", type=int, default=10, metavar="N", help="measurements of speed (default 10; 0: none)")
    parser.add_json()
    parser.add_import()
    args = vars(parser.parse_args(argv))
    if args["rounds"] < 0:
        parser.error(f"--rounds {args['rounds']}: must be 0 or more")
    parser.run_import(args)
    rounds, file, mixers = args.pop("rounds"), args.pop("json"), args.pop("import_files")
    source, data, out = args.pop("source"), args.pop("data"), args.pop("out")
    report = quantize(source, data, out, on_step=say_step("quantize"), **args)
    values = report.to_dict()
    if file:  # the metric holds also where the speed cannot be measured
        write_json(file, values)
    say(report.text())
    if rounds:
        from metaformer.bench.exports import BFLOAT16, OPTIMIZED, measure_forms

        own = {"checkpoint": args["checkpoint"], "class_names": args["class_names"], "file": mixers}
        speed = measure_forms(source, {OPTIMIZED: None, BFLOAT16: None, "int8": out}, rounds=rounds, **own)
        values["speed"] = speed.to_dict()
        if file:
            write_json(file, values)
        say(f"\n{speed.text()}")
    return 0
