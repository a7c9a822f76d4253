"""`metaformer data WHAT …`: make, check and shard data sets."""

import difflib
from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

from metaformer.cli.parser import Parser, UsageError, write_json

if TYPE_CHECKING:
    from metaformer.tasks.check import CheckReport


def run(argv: list[str]) -> int:
    """Do one of the things that can be done with data sets."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    what, rest = argv[0], argv[1:]
    if what not in SUBCOMMANDS:
        near = difflib.get_close_matches(what, SUBCOMMANDS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(SUBCOMMANDS)}"
        raise UsageError(f"data: unknown word {what!r}: {hint}")
    return SUBCOMMANDS[what][1](rest)


def _demo(argv: list[str]) -> int:
    parser = Parser(
        "data demo",
        "Write the demo data sets: digits on photographs, as an image folder, as ADE20K and as COCO.",
        "metaformer data demo demo-data",
    )
    add = parser.add_argument
    add("dir", metavar="DIR", help="where to: a new or empty folder")
    add("--seed", type=int, default=0, help="everything random is a function of it (default 0)")
    add("--per-class", type=int, metavar="N", help="digits of each class (default: all, about 180)")
    add("--copies", type=int, default=4, metavar="N", help="images per training digit (default 4)")
    add(
        "--scenes",
        type=int,
        nargs=2,
        default=(600, 150),
        metavar="N",
        help="scenes to learn from, and held out (default 600 150)",
    )
    words = parser.parse_args(argv)
    from metaformer.tasks.demo import write_demo_data

    images = write_demo_data(
        words.dir, words.seed, per_class=words.per_class, copies=words.copies, scenes=tuple(words.scenes)
    )
    for folder, count in images.items():
        print(f"{count} images: {folder}")
    return 0


def _check(argv: list[str]) -> int:
    parser = Parser(
        "data check",
        "Read every image of a data set and tell all that is wrong with it: what cannot be read, classes\n"
        "that differ between splits, images that are in two of them, and more. Exit status 1 on an error.\n"
        "\n"
        "Images with label maps are recognized by their folders: ADE20K, Pascal VOC, Cityscapes,\n"
        "COCO-Stuff, or images/SPLIT beside annotations/SPLIT with a classes.txt; and so are images with\n"
        "objects: COCO's JSON, Pascal VOC's XML, or YOLO's text files.",
        "metaformer data check flowers --json faults.json",
    )
    add = parser.add_argument
    add(
        "data",
        metavar="DIR",
        help="image folder, shards (also s3://… and the like), or with label maps or objects",
    )
    _add_splits(parser)
    task = "what is learned: classes of images, of pixels, or objects (default: recognized)"
    add("--task", choices=["classify", "segment", "detect"], help=task)
    form = (
        "how the files lie (default: recognized): label maps as folders, ade20k, voc, cityscapes or "
        "coco_stuff, objects as coco, voc or yolo"
    )
    add("--layout", metavar="NAME", help=form)
    add("--classes", metavar="FILE", help="names of the classes of label maps or objects, one per line")
    zero = "whether 0 in label maps is no class (default: as the layout has it; yes in ade20k)"
    add("--reduce-zero-label", choices=["yes", "no"], help=zero)
    _add_workers(parser)
    parser.add_json()
    words = parser.parse_args(argv)
    report = _checked(words)
    if words.json:
        write_json(words.json, report.to_dict())
    print(report.text())
    return 0 if report.ok else 1


def _checked(words: Namespace) -> "CheckReport":
    from metaformer.tasks.classification.check import check_data_set
    from metaformer.tasks.detection.check import check_objects
    from metaformer.tasks.segmentation.check import check_label_maps

    splits, zero, task = words.split or _SPLITS, words.reduce_zero_label, words.task or _task(words)
    if task == "classify":
        return check_data_set(words.data, splits, workers=words.workers)
    if task == "detect":
        return check_objects(
            words.data, splits, layout=words.layout or "auto", classes=words.classes, workers=words.workers
        )
    return check_label_maps(
        words.data,
        splits,
        layout=words.layout or "auto",
        classes=words.classes,
        reduce_zero_label=None if zero is None else zero == "yes",
        workers=words.workers,
    )


def _task(words: Namespace) -> str:
    """What a data set is for: as other words tell, else as its files do."""
    from metaformer.data.shards.remote import is_remote
    from metaformer.tasks.detection.formats.layouts import DETECTION_LAYOUTS, find_detection_layout
    from metaformer.tasks.segmentation.layouts import LAYOUTS, find_layout, has_label_maps

    if words.layout in DETECTION_LAYOUTS and words.layout not in LAYOUTS:
        return "detect"
    if words.reduce_zero_label or words.layout not in (None, "voc"):
        return "segment"
    if is_remote(words.data):
        return "classify"
    objects, maps = find_detection_layout(words.data), find_layout(words.data)
    if objects is not None:
        if has_label_maps(words.data):
            raise UsageError(
                f"data check: {words.data} holds objects and label maps: say --task detect or segment"
            )
        return "detect"
    said = (words.layout, words.classes) != (None, None)
    return "segment" if said or maps is not None else "classify"


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
    words = parser.parse_args(argv)
    from metaformer.data.shards.write import write_shards

    done = write_shards(
        words.data,
        words.out,
        words.split or _SPLITS,
        words.to,
        shard_size=words.shard_size,
        on_bad_image=words.on_bad_image,
        workers=words.workers,
    )
    print(done.text())
    return 0


def _add_splits(parser: Parser) -> None:
    text = "a split, the training one first; give it several times (default train and val)"
    parser.add_argument("--split", action="append", metavar="NAME", help=text)


def _add_workers(parser: Parser) -> None:
    text = "processes that read (default: one per core)"
    parser.add_argument("--workers", type=int, metavar="N", help=text)


def _overview() -> str:
    lines = ["usage: metaformer data WHAT … (metaformer data WHAT --help tells more)", ""]
    lines += [f"  {what:<6} {text}" for what, (text, _) in SUBCOMMANDS.items()]
    return "\n".join([*lines, "", "example:", "  metaformer data check flowers"])


_SPLITS = ("train", "val")
SUBCOMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "demo": ("write the demo data sets", _demo),
    "check": ("tell all that is wrong with a data set", _check),
    "shard": ("write an image folder as parquet or tar files", _shard),
}
