"""`metaformer export RUN|CHECKPOINT|MODEL OUT.onnx|OUT.xml|OUT.pt2`."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaformer.cli.parser import Parser, say, say_step

if TYPE_CHECKING:
    from metaformer.tasks.base import LoadedModel

EXAMPLE = """metaformer export runs/demo-detect digits.onnx
  metaformer export runs/demo-segment digits.xml --probabilities
  metaformer export poolformer_s12 poolformer.pt2 --dtype bf16 --batch 1 64 --sizes 224 1024"""
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
PACKAGE = ".pt2"
ONLY = {
    "graph": ("opset", "input", "max_objects", "probabilities", "runner", "triton"),
    "package": ("sizes", "device"),
}
"""Options of .onnx and .xml files alone, and of .pt2 files alone."""


def run(argv: list[str]) -> int:
    """Write a network as one file: for ONNX Runtime, for OpenVINO, or compiled for PyTorch."""
    parser = _parser()
    args = parser.parse_args(argv)
    package = Path(args.out).suffix == PACKAGE
    given = {name: value for name, value in vars(args).items() if value not in (None, False)}
    for name in ONLY["graph" if package else "package"]:
        if name in given:
            parser.error(
                f"--{name.replace('_', '-')}: no option of a {Path(args.out).suffix or 'nameless'} file"
            )
    parser.run_import(vars(args))
    return _package(parser, args) if package else _export(parser, args)


def _export(parser: Parser, args: Namespace) -> int:
    from metaformer.deploy.export.write import export

    if args.batch and len(args.batch) > 1:
        parser.error("--batch: a .onnx or .xml file takes any number of images, or one number: --batch N")
    names = ("opset", "input", "max_objects", "dtype", "runner", "triton")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    size = args.image_size
    written = export(
        args.source,
        args.out,
        checkpoint=args.checkpoint,
        class_names=args.class_names,
        batch=args.batch[0] if args.batch else None,
        image_size=None if size is None else size[0] if len(size) == 1 else tuple(size),
        probabilities=args.probabilities,
        ema=args.ema,
        raw=args.raw,
        on_step=say_step("export"),
        **options,
    )
    say(written.text())
    say(f"metaformer predict {args.out} IMAGES, metaformer evaluate {args.out} --data DIR take it as a run")
    if args.runner:
        say(f"without PyTorch: python {Path(args.runner, 'run.py')} {args.out} IMAGES")
    if args.triton:
        say(f"tritonserver --model-repository {args.triton}")
    return 0


def _package(parser: Parser, args: Namespace) -> int:
    """Compile a network ahead of time into one file."""
    import torch

    from metaformer.deploy.packaging.write import check_possible, package
    from metaformer.distributed import find_device
    from metaformer.inference.model import load_model

    if args.sizes and args.image_size:
        parser.error("--sizes and --image-size both set the image size: give one of them")
    if args.image_size and len(args.image_size) > 1:
        parser.error("--image-size: of a .pt2 file it is one number")
    check_possible(Path(args.out))
    device = find_device(args.device or "auto")
    names = args.class_names
    model = load_model(args.source, args.checkpoint, class_names=names, ema=args.ema, raw=args.raw)
    model = model.with_preprocess(image_size=args.image_size[0] if args.image_size else None)
    batch = args.batch or (1, 64)
    written = package(
        model.to(device, "none").model,
        args.out,
        dtype=getattr(torch, DTYPES[args.dtype]) if args.dtype else None,
        batch=(batch[0], batch[-1]),
        size=_size(model, args),
        notes=_notes(model),
        on_step=say_step("export"),
    )
    say(f"{written.path}: {model.name}, {written.limits}")
    say(f"largest difference from the network: {written.difference:.1e} of the largest output")
    say(f'load it with: metaformer.load_package("{written.path}", trusted=True)')
    return 0


def _parser() -> Parser:
    parser = Parser(
        "export",
        "Write a network as a file. The suffix chooses the format: .onnx for ONNX Runtime and .xml for\n"
        "OpenVINO, which run without PyTorch, hold preprocessing, classes and non-maximum suppression, and\n"
        "which predict and evaluate take as they take a run; .pt2 for PyTorch, compiled for this kind of\n"
        "machine. The file is compared with the network before it is kept.",
        EXAMPLE,
    )
    add = parser.add_argument
    parser.add_source()
    add("out", metavar="OUT.onnx|OUT.xml|OUT.pt2", help="file to write")
    add("--class-names", metavar="FILE", help="class names, one per line, where nothing else gives them")
    add("--dtype", choices=list(DTYPES), help="type of the weights (default: fp32; .pt2: the weights' own)")
    numbers: dict[str, Any] = {"type": int, "nargs": "+", "metavar": "N"}
    add("--batch", **numbers, help="images at once (default: any number; .pt2: 1 to 64, or MIN MAX)")
    add("--image-size", **numbers, help="height and width of the input, one number or two (default: any)")
    graph = parser.add_argument_group(".onnx, .xml")
    graph.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators (default 20)")
    text = "uint8: pixels (B, H, W, 3), normalized in the graph (the default); float: normalized (B, C, H, W)"
    graph.add_argument("--input", choices=["uint8", "float"], help=text)
    text = "detection: objects of an image, at most (default: the network's own, 100)"
    graph.add_argument("--max-objects", type=int, metavar="N", help=text)
    text = "segmentation: also write the probabilities, with which label maps of other sizes are exact"
    graph.add_argument("--probabilities", action="store_true", help=text)
    text = "write DIR/run.py, which predicts with a .onnx file by numpy, pillow and onnxruntime alone"
    graph.add_argument("--runner", metavar="DIR", help=text)
    text = "write a model repository of Triton Inference Server with the file"
    graph.add_argument("--triton", metavar="DIR", help=text)
    package = parser.add_argument_group(".pt2")
    text = "smallest and largest height and width (default: the checkpoint's; pixels and objects: any)"
    package.add_argument("--sizes", type=int, nargs=2, metavar=("MIN", "MAX"), help=text)
    package.add_argument("--device", help="where it will run: auto, cpu, cuda or cuda:N (default auto)")
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
