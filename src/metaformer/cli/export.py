"""`metaformer export RUN|CHECKPOINT|MODEL OUT.pt2`."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaformer.cli.parser import Parser, say

if TYPE_CHECKING:
    from metaformer.tasks.base import LoadedModel

EXAMPLE = """metaformer export runs/demo-classify digits.pt2
  metaformer export poolformer_s12 poolformer.pt2 --dtype bf16 --batch 1 64 --sizes 224 1024"""
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def run(argv: list[str]) -> int:
    """Compile a network ahead of time into one file."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.sizes and args.image_size:
        parser.error("--sizes and --image-size both set the image size: give one of them")
    parser.run_import(vars(args))
    import torch

    from metaformer.deploy.packaging.write import check_possible, package
    from metaformer.distributed import find_device
    from metaformer.inference.model import load_model

    check_possible(Path(args.out))
    device = find_device(args.device)
    names = args.class_names
    model = load_model(args.source, args.checkpoint, class_names=names, ema=args.ema, raw=args.raw)
    model = model.with_preprocess(image_size=args.image_size)
    written = package(
        model.to(device, "none").model,
        args.out,
        dtype=getattr(torch, DTYPES[args.dtype]) if args.dtype else None,
        batch=tuple(args.batch),
        size=_size(model, args),
        notes=_notes(model),
        on_step=lambda step: print(f"export: {step}", file=sys.stderr, flush=True),
    )
    say(f"{written.path}: {model.name}, {written.limits}")
    say(f"largest difference from the network: {written.difference:.1e} of the largest output")
    say(f'load it with: metaformer.load_package("{written.path}", trusted=True)')
    return 0


def _parser() -> Parser:
    parser = Parser(
        "export",
        "Compile a network's fastest form ahead of time into one file, which Python and C++ load without a "
        "compiler. It takes a minute or so, and a C++ compiler.",
        EXAMPLE,
    )
    add = parser.add_argument
    parser.add_source()
    add("out", metavar="OUT.pt2", help="file to write")
    add("--class-names", metavar="FILE", help="class names, one per line, where nothing else gives them")
    add("--dtype", choices=list(DTYPES), help="type of weights and images (default: the weights' own)")
    least_most = ("MIN", "MAX")
    numbers: dict[str, Any] = {"type": int, "nargs": 2, "metavar": least_most}
    add("--batch", **numbers, default=(1, 64), help="fewest and most images at once (default 1 64)")
    text = "smallest and largest height and width (default: the checkpoint's; pixels and objects: any)"
    add("--sizes", **numbers, help=text)
    add("--image-size", type=int, metavar="N", help="classification: one height and width")
    add("--device", default="auto", help="where it will run: auto, cpu, cuda or cuda:N (default auto)")
    parser.add_ema()
    parser.add_import()
    return parser


def _size(model: "LoadedModel", args: Namespace) -> Any:
    """The `size` of `package`."""
    from metaformer.data.preprocess import Preprocess

    if args.sizes:
        return tuple(args.sizes)
    preprocess = model.preprocess
    return (preprocess.image_size,) * 2 if isinstance(preprocess, Preprocess) else "dynamic"


def _notes(model: "LoadedModel") -> dict[str, Any]:
    """Metadata that a user of the package needs."""
    return {
        "name": model.name,
        "task": model.task,
        "classes": model.classes,
        "preprocess": model.preprocess.to_dict(),
        "metadata": model.metadata,
    }
