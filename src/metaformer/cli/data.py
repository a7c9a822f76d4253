"""`metaformer data COMMAND`: write, check, shard and split data sets."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaformer.cli.options import accepts, add_options, add_task_options, options_of
from metaformer.cli.parser import Parser, UsageError, say, write_json
from metaformer.errors import DataError
from metaformer.process import encoding_remedy

if TYPE_CHECKING:
    from metaformer.tasks.base import TaskSpec


def run(argv: list[str]) -> int:
    """Run a subcommand."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    what, rest = argv[0], argv[1:]
    if what not in SUBCOMMANDS:
        near = difflib.get_close_matches(what, SUBCOMMANDS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(SUBCOMMANDS)}"
        raise UsageError(f"data: unknown command {what!r}: {hint}")
    return SUBCOMMANDS[what][1](rest)


def _demo(argv: list[str]) -> int:
    from metaformer.tasks.demo import write_demo_data

    parser = Parser(
        "data demo",
        "Write the demo data sets: digits on photographs, as an image folder, CSV labels, ADE20K and COCO.",
        "metaformer data demo demo-data",
    )
    parser.add_argument("root", metavar="DIR", help="where to: a new or empty folder")
    add_options(parser, list(options_of(write_demo_data, skip=("progress",))))
    return _say_scenes(write_demo_data(**vars(parser.parse_args(argv))))


def _say_scenes(images: Mapping[Path, int]) -> int:
    from metaformer.tasks.demo import OVERVIEW

    for folder, count in images.items():
        say(f"{count} images: {folder}")
    say(f"some of each: {next(iter(images)).parent / OVERVIEW}")
    return 0


def _fashion_mnist(argv: list[str]) -> int:
    from metaformer.dataset_builders.fashion_mnist import DEBIAN, write_fashion_mnist

    parser = Parser(
        "data fashion-mnist",
        "Write Fashion-MNIST as an image folder: 28×28 gray images of ten kinds of clothing, 55,000 to\n"
        "learn from, 5,000 for validation, 10,000 as the published test.",
        "metaformer data fashion-mnist fashion",
    )
    add = parser.add_argument
    add("dir", metavar="DIR", help="where to: a new or empty folder")
    default = f"{DEBIAN} of Debian's package dataset-fashion-mnist, else downloaded"
    add("--from", dest="source", metavar="FOLDER", help=f"the four published files (default: {default})")
    args = parser.parse_args(argv)
    say(write_fashion_mnist(args.dir, source=args.source).text())
    return 0


def _icons(argv: list[str]) -> int:
    from metaformer.dataset_builders.icons import write_icons

    parser = Parser(
        "data icons",
        "Write icons of many designers as an image folder, whose classes are what they show; the designers\n"
        "of val and test drew nothing of train.",
        "metaformer data icons icons --from iconify-json-2.2.535.tgz",
    )
    say(write_icons(**_drawing_options(parser, write_icons, argv)).text())
    return 0


def _emoji_scenes(argv: list[str]) -> int:
    from metaformer.dataset_builders.emoji_scenes import write_emoji_scenes

    parser = Parser(
        "data emoji-scenes",
        "Write scenes of emoji on photographs with exact masks, in the format of every task, as data demo\n"
        "does of digits; the artists of val drew nothing of train.",
        "metaformer data emoji-scenes scenes --from iconify-json-2.2.535.tgz",
    )
    return _say_scenes(write_emoji_scenes(**_drawing_options(parser, write_emoji_scenes, argv)))


def _drawing_options(parser: Parser, write: Callable[..., Any], argv: list[str]) -> dict[str, Any]:
    """Arguments of a function that makes a data set from npm's package of icon sets."""
    add = parser.add_argument
    add("out", metavar="DIR", help="where to: a new or empty folder")
    package = "npm's package of icon sets, as npm pack @iconify/json fetches it"
    add("--from", dest="source", required=True, metavar="TARBALL", help=package)
    add_options(parser, list(options_of(write, skip=("source", "progress"))))
    return vars(parser.parse_args(argv))


def _check(argv: list[str]) -> int:
    from metaformer.tasks import TASKS

    parser = Parser(
        "data check",
        "Read every image and annotation of a data set and report all that is wrong with it: what cannot\n"
        "be read, classes that differ between splits, images that are in two of them, and more. Exit\n"
        "status 1 on an error. The task is recognized by the files, and by the options that are given.",
        "metaformer data check flowers --json faults.json",
    )
    add = parser.add_argument
    add("data", metavar="DIR", help="data set, or shards (also s3://… and the like)")
    _add_splits(parser)
    titles = ", ".join(f"{name} ({spec.title})" for name, spec in TASKS.items())
    add("--task", choices=list(TASKS), metavar="TASK", help=f"{titles} (default: recognized)")
    _add_workers(parser)
    parser.add_json()
    add_task_options(parser, "check_data")
    args = vars(parser.parse_args(argv))
    data, splits, task = args.pop("data"), args.pop("split") or SPLITS, args.pop("task")
    workers, file = args.pop("workers"), args.pop("json")
    report = _spec(parser, data, task, args).check_data(data, splits, workers=workers, **args)
    if file:
        write_json(file, report.to_dict())
    text = report.text()
    say(text if report.ok else text + encoding_remedy(text))
    return 0 if report.ok else 1


def _spec(parser: Parser, data: str, task: str | None, options: dict[str, Any]) -> "TaskSpec":
    """The task of a data set: named, or recognized by its files among those that take the options."""
    from metaformer.tasks import TASKS

    named = list(TASKS.values()) if task is None else [TASKS[task]]
    able = [spec for spec in named if accepts(spec.check_data, options)]
    if not able:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in options)
        parser.error(f"{given}: no option of {' or '.join(spec.title for spec in named)}")
    if len(able) == 1:
        return able[0]
    certainty = {spec.name: spec.recognize(data) for spec in able}
    highest = max(certainty.values())
    best = [spec for spec in able if certainty[spec.name] is highest]
    if len(best) > 1 and highest:
        parser.error(f"{data} may be for {' or '.join(spec.title for spec in best)}: say --task")
    return best[0]


def _shard(argv: list[str]) -> int:
    parser = Parser(
        "data shard",
        "Write an image folder as a few large files, which are read where an image folder is.\n\n"
        "parquet  read through Hugging Face's datasets, in any order: training is shuffled, an epoch holds\n"
        "         every image once, and a stopped run goes on exactly, as on the folder itself. Needs as\n"
        "         much local disk again, for its cache.\n"
        "tar      webdataset's form, read from beginning to end; nothing is kept on the machine. The weaker\n"
        "         guarantee: images are shuffled within a buffer, an epoch may repeat or miss some, and a\n"
        "         resumed run sees another order than one that was never stopped. Evaluation stays exact.",
        "metaformer data shard imagenet imagenet-shards --to parquet",
    )
    add = parser.add_argument
    add("data", metavar="DIR", help="image folder")
    add("out", metavar="OUT", help="where to: a new or empty folder")
    _add_splits(parser)
    add("--to", choices=["parquet", "tar"], default="parquet", help="what to write (default parquet)")
    add("--shard-size", type=float, default=256, metavar="MB", help="images per file (default 256 MB)")
    bad = "an image that cannot be read: an error, or left out and logged, up to 0.1 %% (default error)"
    add("--on-bad-image", choices=["error", "skip"], default="error", help=bad)
    _add_workers(parser)
    args = parser.parse_args(argv)
    from metaformer.data.shards.write import write_shards

    done = write_shards(
        args.data,
        args.out,
        args.split or SPLITS,
        args.to,
        shard_size=args.shard_size,
        on_bad_image=args.on_bad_image,
        workers=args.workers,
    )
    say(done.text())
    return 0


def _split(argv: list[str]) -> int:
    from metaformer.data.divide import write_splits
    from metaformer.tasks import other_task

    parser = Parser(
        "data split",
        "Write class folders without splits again as train, val and perhaps test: of each class the same\n"
        "share, chosen by seed and path alone. Files are hard links where the disk allows it, else copies.",
        "metaformer data split flowers flowers-split --val-fraction 0.2 --group '(plant[0-9]+)'",
    )
    add = parser.add_argument
    add("data", metavar="DIR", help="folder of class folders")
    add("out", metavar="OUT", help="where to: a new or empty folder")
    add_options(parser, list(options_of(write_splits)))
    args = vars(parser.parse_args(argv))
    if (other := other_task(args["data"], "classify")) is not None:
        remedy = "a training divides it with --data.val_fraction 0.2"
        raise DataError(f"{args['data']}: looks like {other.title}, not like class folders: {remedy}")
    print(write_splits(args.pop("data"), args.pop("out"), **args).text())
    return 0


def _add_splits(parser: Parser) -> None:
    text = "a split, the training one first; give it several times (default train and val)"
    parser.add_argument("--split", action="append", metavar="NAME", help=text)


def _add_workers(parser: Parser) -> None:
    text = "processes that read (default: one per core)"
    parser.add_argument("--workers", type=int, metavar="N", help=text)


def _overview() -> str:
    lines = ["usage: metaformer data COMMAND … (metaformer data COMMAND --help)", ""]
    width = max(map(len, SUBCOMMANDS))
    lines += [f"  {what:<{width}}  {text}" for what, (text, _) in SUBCOMMANDS.items()]
    return "\n".join([*lines, "", "example:", "  metaformer data check flowers"])


SPLITS = ("train", "val")
SUBCOMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "demo": ("write the demo data sets", _demo),
    "check": ("report all that is wrong with a data set", _check),
    "shard": ("write an image folder as parquet or tar files", _shard),
    "split": ("divide class folders into train, val and test", _split),
    "fashion-mnist": ("write Fashion-MNIST as an image folder", _fashion_mnist),
    "icons": ("write icons of many designers as an image folder", _icons),
    "emoji-scenes": ("write scenes of emoji with label maps and objects", _emoji_scenes),
}
