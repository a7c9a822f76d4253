"""`metaformer evaluate RUN|CHECKPOINT|MODEL --data DIR`."""

import os

from metaformer.cli.options import add_options, add_task_options, options_of
from metaformer.cli.parser import Parser, say

EXAMPLE = """metaformer evaluate runs/flowers --flip
  metaformer evaluate caformer_s18.sail_in1k --data IMAGENET --real-labels real.json"""


def run(argv: list[str]) -> int:
    """Evaluate a network, whole and by class."""
    from metaformer.inference.evaluate import evaluate

    parser = Parser("evaluate", "Evaluate a run, a checkpoint or a published model on a data set.", EXAMPLE)
    parser.add_source()
    parser.add_argument("--data", metavar="DIR", help="folder of the data set (default: the run's own)")
    add_options(parser, list(options_of(evaluate, skip=("checkpoint",))))
    add_task_options(parser, "evaluation")
    parser.add_json()
    parser.add_import()
    args = vars(parser.parse_args(argv))
    parser.run_import(args)
    options = {
        name: value for name, value in args.items() if name not in ("source", "data", "json", "import_files")
    }
    report = evaluate(args["source"], args["data"], **options)
    if os.environ.get("RANK", "0") == "0":  # under torchrun every process evaluates, the first prints
        if args["json"]:
            report.save(args["json"])
        say(report.text())
    return 0
