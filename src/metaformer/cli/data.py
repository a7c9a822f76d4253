"""`metaformer data demo DIR`."""

from metaformer.cli.parser import Parser


def run(argv: list[str]) -> int:
    """Write the demo data sets."""
    parser = Parser(
        "data",
        "Write the demo data sets: digits on photographs, as an image folder, as ADE20K and as COCO.",
        "metaformer data demo demo-data",
    )
    parser.add_argument("what", choices=["demo"], help="which data")
    parser.add_argument("dir", metavar="DIR", help="where to: a new or empty folder")
    parser.add_argument(
        "--seed", type=int, default=0, help="everything random is a function of it (default 0)"
    )
    add = parser.add_argument
    add("--per-class", type=int, metavar="N", help="digits of each class (default: all, about 180)")
    add("--copies", type=int, default=4, metavar="N", help="pictures per training digit (default 4)")
    add(
        "--scenes",
        type=int,
        nargs=2,
        default=(600, 150),
        metavar="N",
        help="scenes to learn from, and held out (default 600 150)",
    )
    words = parser.parse_args(argv)
    from metaformer.data.demo import write_demo

    demo = write_demo(
        words.dir, words.seed, per_class=words.per_class, copies=words.copies, scenes=tuple(words.scenes)
    )
    print(f"{demo.pictures} pictures:\n  {demo.classify}\n  {demo.segment}\n  {demo.detect}")
    return 0
