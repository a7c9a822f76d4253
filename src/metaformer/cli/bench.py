"""`metaformer bench MODEL…`, as `python -m metaformer.bench`, and `metaformer bench exports RUN`."""

from metaformer.cli.options import add_options as add_function_options
from metaformer.cli.options import options_of
from metaformer.cli.parser import Parser, say, say_step, write_json

EXPORTS = "exports"
EXPORTS_EXAMPLE = """metaformer bench exports runs/demo-classify
  metaformer bench exports runs/demo-segment --files digits.onnx digits.xml --no-metric"""


def run(argv: list[str]) -> int:
    """Count and time models."""
    from metaformer.bench.__main__ import EXAMPLE, add_options
    from metaformer.bench.__main__ import run as measure

    if argv[:1] == [EXPORTS]:
        return _exports(argv[1:])
    parser = Parser(
        "bench",
        "Parameters, multiply-adds, activations and speed of models; metaformer bench exports RUN\n"
        "compares a network in PyTorch with its exported files.",
        EXAMPLE.strip(),
    )
    add_options(parser)
    return measure(parser.parse_args(argv))


def _exports(argv: list[str]) -> int:
    """Compare the forms of a network."""
    from metaformer.bench.exports import bench_exports

    parser = Parser(
        f"bench {EXPORTS}",
        "Compare a network in PyTorch, optimized, as ONNX, as OpenVINO's and in int8: megabytes,\n"
        "milliseconds an image at batch 1 and 8, and the task's metric. Each runs in a process of its own,\n"
        "in turn.",
        EXPORTS_EXAMPLE,
    )
    parser.add_source()
    add = parser.add_argument
    add("--data", metavar="DIR", help="folder of the data set (default: the run's own)")
    add("--files", nargs="+", default=[], metavar="FILE", help="exported files of it; missing ones are made")
    skip = ("checkpoint", "files", "metric", "file", "on_step")
    add_function_options(parser, list(options_of(bench_exports, skip=skip)))
    add("--no-metric", dest="metric", action="store_false", help="do not evaluate")
    parser.add_json()
    parser.add_import()
    args = vars(parser.parse_args(argv))
    parser.run_import(args)
    json, mixers = args.pop("json"), args.pop("import_files")
    report = bench_exports(
        args.pop("source"), args.pop("data"), file=mixers, on_step=say_step("bench"), **args
    )
    if json:
        write_json(json, report.to_dict())
    say(report.text())
    return 0
