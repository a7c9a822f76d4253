"""`python -m metaformer.bench MODEL…`: the command without the command line's packages."""

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

from metaformer.bench.run import DTYPES, BenchConfig, bench
from metaformer.errors import MetaFormerError
from metaformer.process import keep_freed_memory, print_anywhere
from metaformer.registry import import_files
from metaformer.storage import write_text

EXAMPLE = """  metaformer bench poolformer_s12 cyclemlp_b1 --batch 8 --against timm:poolformer_s12
  metaformer bench semantic_fpn_poolformer_s12 --size 512 --optimize --against smp:fpn/poolformer_s12
  metaformer bench caformer_s18 --size 384 --counts --by stage
  metaformer bench poolformer_s12 --import foo.py --mixers foo foo attention attention --json out.json"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `run` reads."""
    add, config = parser.add_argument, BenchConfig()
    add(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a name of `metaformer list`, semantic_fpn_NAME, upernet_NAME, timm:NAME or smp:KIND/ENCODER",
    )
    add("--against", metavar="MODEL", help="measure this model in the same rounds and print the ratio")
    add("--batch", type=int, default=config.batch, metavar="N", help="images at once (default 1)")
    add("--size", type=int, metavar="N", help="height and width of the images (default: the model's own)")
    add("--dtype", choices=list(DTYPES), default=config.dtype, help="type of weights and images")
    add(
        "--memory-format",
        choices=["channels_last", "contiguous"],
        default=config.memory_format,
        help="layout of weights and images (default channels_last)",
    )
    add("--compile", action="store_true", help="run through torch.compile")
    add("--optimize", action="store_true", help="this library's networks in their inference form")
    add("--device", default=config.device, help="auto, cpu, cuda or cuda:N")
    add("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's choice)")
    add("--rounds", type=int, default=config.rounds, metavar="N", help="measurements (default 10)")
    add("--warmup", type=int, default=config.warmup, metavar="N", help="passes before them (default 3)")
    add("--train", action="store_true", help="measure forward and backward pass, and the memory of both")
    add("--counts", action="store_true", help="only count parameters and multiply-adds, measure no time")
    add("--by", choices=["stage", "mixer", "block"], help="break the counts down")
    add("--mixers", nargs="+", metavar="MIXER", help="other token mixers: one for all, or one per stage")
    several = "run this file first: it may register own mixers; give it several times for several files"
    add("--import", dest="files", action="append", default=[], metavar="FILE.py", help=several)
    add("--json", metavar="FILE", help="write everything there; - for standard output, without the table")


def run(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status.

    Raises:
        MetaFormerError: something that the user can correct.
    """
    import_files(args.files)
    given = {field.name: getattr(args, field.name) for field in fields(BenchConfig) if field.name != "speed"}
    config = BenchConfig(**given, speed=not args.counts)
    report = bench(args.models, config, against=args.against, mixers=args.mixers)
    text = json.dumps(report.to_dict(), indent=1) + "\n"
    if args.json and args.json != "-":
        write_text(Path(args.json), text)
    print(text if args.json == "-" else report.text(args.by))
    return 0


def main() -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(
        "python -m metaformer.bench",
        description=__doc__,
        epilog=f"examples:\n{EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    keep_freed_memory()
    print_anywhere()
    try:
        return run(parser.parse_args())
    except MetaFormerError as error:
        print(f"metaformer bench: error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
