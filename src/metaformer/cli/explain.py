"""`metaformer explain RUN|CHECKPOINT|MODEL IMAGE… --out DIR`."""

import sys

from metaformer.cli.options import add_options, options_of
from metaformer.cli.parser import Parser, say

EXAMPLE = """metaformer explain runs/demo-classify photos/ --out explained
  metaformer explain runs/demo-detect photo.jpg --out explained --box 40,30,200,180
  metaformer explain runs/demo-segment photos/ --out explained --classes cat,dog --stage 2"""


def run(argv: list[str]) -> int:
    """Write maps of what a network looks at."""
    from metaformer.inference.explain import explain

    parser = Parser(
        "explain",
        "Write for each image a sheet of what the network looks at: class activation maps of what it finds,\n"
        "and stage by stage its features, what one position depends on, and attention.",
        EXAMPLE,
    )
    parser.add_source()
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image, folder (with those inside it), glob")
    add("--out", required=True, metavar="DIR", help="folder of sheets, explained.jsonl and index.html")
    add_options(parser, list(options_of(explain, skip=("checkpoint",))))
    parser.add_import()
    args = vars(parser.parse_args(argv))
    parser.run_import(args)
    del args["import_files"]
    done = explain(args.pop("source"), args.pop("images"), args.pop("out"), **args)
    say(done.text())
    if done.skipped:
        files = ", ".join(str(error.path) for error in done.skipped)
        print(f"left out {len(done.skipped)} images that cannot be read: {files}", file=sys.stderr)
    return 0
