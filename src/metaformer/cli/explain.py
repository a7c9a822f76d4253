"""`metaformer explain RUN|CHECKPOINT|MODEL IMAGE… --out DIR`."""

import sys
from pathlib import Path
from typing import Any

from metaformer.cli.options import add_options, options_of
from metaformer.cli.parser import Parser, say, write_json

EXAMPLE = """metaformer explain runs/demo-classify photos/ --out explained
  metaformer explain runs/demo-detect photo.jpg --out explained --box 40,30,200,180
  metaformer explain runs/demo-segment photo.jpg --out explained --classes cat,dog --stage 2
  metaformer explain runs/demo-classify photos/ --receptive-field --out field"""
FIELD = "receptive-field"
"""Name of the files of `--receptive-field`."""


def run(argv: list[str]) -> int:
    """Write maps of what a network looks at, or measure its receptive field."""
    from metaformer.inference.explain import explain
    from metaformer.inference.receptive_field import measure_receptive_field

    parser = Parser(
        "explain",
        "Write for each image a sheet of what the network looks at: class activation maps of what it finds,\n"
        "and stage by stage its features, what one position depends on, and attention. Or measure the\n"
        "effective receptive field, before and after training.",
        EXAMPLE,
    )
    parser.add_source()
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="image, folder (with those inside it), glob")
    add("--out", metavar="DIR", help="folder to write to; with --receptive-field it may be left out")
    text = "print the effective receptive field, by RepLKNet's rule; without images on noise"
    add("--receptive-field", action="store_true", help=text)
    common = {option.name for option in options_of(explain)} & {
        option.name for option in options_of(measure_receptive_field)
    }
    add_options(parser, [one for one in options_of(explain) if one.name in common])
    own = {
        "sheets": [one for one in options_of(explain) if one.name not in common],
        "--receptive-field": [one for one in options_of(measure_receptive_field) if one.name not in common],
    }
    for title, options in own.items():
        add_options(parser.add_argument_group(title), options, given_only=True)
    parser.add_import()
    args = vars(parser.parse_args(argv))
    parser.run_import(args)
    del args["import_files"]
    field = args.pop("receptive_field")
    for option in own["sheets" if field else "--receptive-field"]:
        if option.name in args:
            flag = f"--{option.name.replace('_', '-')}"
            parser.error(f"{flag}: no option {'beside' if field else 'without'} --receptive-field")
    if not field and not (args["images"] and args["out"]):
        parser.error("name images to explain, and the folder to write to with --out")
    return _field(args) if field else _sheets(args)


def _sheets(args: dict[str, Any]) -> int:
    from metaformer.inference.explain import explain

    done = explain(args.pop("source"), args.pop("images"), args.pop("out"), **args)
    say(done.text())
    if done.skipped:
        files = ", ".join(str(error.path) for error in done.skipped)
        print(f"left out {len(done.skipped)} images that cannot be read: {files}", file=sys.stderr)
    return 0


def _field(args: dict[str, Any]) -> int:
    from metaformer.inference.receptive_field import measure_receptive_field

    out = args.pop("out")
    image = None if out is None else Path(out, f"{FIELD}.png")
    done = measure_receptive_field(args.pop("source"), args.pop("images"), image, **args)
    say(done.text())
    if image is not None:
        write_json(image.with_suffix(".json"), done.to_dict())
        say(f"image: {image}\nnumbers: {image.with_suffix('.json')}")
    return 0
