"""`metaformer serve RUN|FILE.onnx|FILE.xml|MODEL …`."""

import json
import subprocess
import sys
from typing import Any, Final

from metaformer.cli.options import add_options, add_task_options, options_of
from metaformer.cli.parser import Parser, UsageError, say
from metaformer.process import keep_freed_memory

EXAMPLE = """metaformer serve runs/demo-classify
  metaformer serve digits=runs/demo-classify boxes=detector.onnx --port 8080 --max-batch 16
  curl -F image=@photo.jpg http://127.0.0.1:8000/predict"""

LARGEST_KEPT: Final = 1 << 17
"""Bytes of a block that is kept when it is freed, as by default: images are large, and may be rare."""


def run(argv: list[str]) -> int:
    """Serve networks over HTTP, with a page for people, until Ctrl-C or SIGTERM."""
    from metaformer.deploy.server.server import serve, split_name

    keep_freed_memory(LARGEST_KEPT)
    args = _parse(argv)
    models = [split_name(text) for text in args.pop("models")]
    names = ", ".join(name for name, _ in models)
    serve(models, on_ready=lambda url: say(f"serving {names} on {url}"), **args)
    return 0


def _parse(argv: list[str]) -> dict[str, Any]:
    """Arguments of `serve`.

    Options of tasks are known with PyTorch alone, which the server does without: where there are some, a
    process that ends reads them.
    """
    if "-h" in argv or "--help" in argv:
        return _parse_all(argv)
    try:
        return vars(_parser(tasks=False).parse_args(argv))
    except UsageError:
        done = subprocess.run([sys.executable, "-m", __name__, *argv], capture_output=True)
        if done.returncode:
            return _parse_all(argv)  # whose error is this process's
        parsed: dict[str, Any] = json.loads(done.stdout)
        return parsed


def _parse_all(argv: list[str]) -> dict[str, Any]:
    return vars(_parser(tasks=True).parse_args(argv))


def _parser(tasks: bool) -> Parser:
    from metaformer.deploy.server.server import serve

    parser = Parser(
        "serve",
        "Serve networks over HTTP: a page, predictions as JSON or drawn, the Open Inference Protocol v2 and\n"
        "metrics. Each network has a process of its own. Without a name a network has that of its folder or\n"
        "file; the first is the one that /predict uses.",
        EXAMPLE,
    )
    kinds = "run, checkpoint or save_pretrained directory, exported file, or model name"
    parser.add_argument("models", nargs="+", metavar="[NAME=]RUN|FILE|MODEL", help=kinds)
    add_options(parser, list(options_of(serve, skip=("import_files", "on_ready"))))
    parser.add_import()
    if tasks:
        add_task_options(parser, "predictor", served=True)
    return parser


if __name__ == "__main__":
    print(json.dumps(_parse_all(sys.argv[1:])))
