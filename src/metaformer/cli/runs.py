"""`metaformer runs [DIR]`."""

import json

from metaformer.cli.listing import table
from metaformer.cli.parser import Parser, say

HEADS = ("run", "model", "state", "step", "best", "last written")
STUDY_HEADS = ("mixer", "seed", "learning rate", "epochs")
"""Beside the model where a run names its mixers, as those of a study do."""


def run(argv: list[str]) -> int:
    """List the runs in a folder; status 1 where one is damaged."""
    parser = Parser(
        "runs",
        "Runs in a folder: state, best metric, and the command that resumes each stopped one.",
        "metaformer runs runs/",
    )
    parser.add_argument("dir", nargs="?", default="runs", metavar="DIR", help="folder (default: runs)")
    parser.add_argument("--verify", action="store_true", help="read the checkpoints and compare their hashes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    from metaformer.checkpoint.runs import find_runs

    found = find_runs(args.dir, contents=args.verify)
    if args.json:
        print(json.dumps([one.to_dict() for one in found], indent=1))
    elif not found:
        say(f"no runs in {args.dir}")
    else:
        rows, compared = [], any(one.mixers is not None for one in found)
        for one in found:
            step = f"{one.step}/{'?' if one.total is None else one.total}"
            best = "-" if one.best is None else f"{one.metric} {one.best:.4f} at {one.best_step}"
            settings = (one.mixers, one.seed, one.learning_rate, one.epochs) if compared else ()
            cells = ("-" if cell is None else str(cell) for cell in settings)
            rows.append((one.path, one.model, *cells, one.state, step, best, f"{one.age} ago"))
        heads = (*HEADS[:2], *STUDY_HEADS, *HEADS[2:]) if compared else HEADS
        say(table(heads, rows))
        for one in found:
            for note in one.notes:
                say(f"\n{note}" if one.state == "other version" else f"\ndamaged: {note}")
            if one.resume:
                say(f"\nto resume {one.path}:\n  {one.resume}")
    return int(any(one.state == "damaged" for one in found))
