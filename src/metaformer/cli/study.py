"""`metaformer study PLAN.yaml` and `metaformer study report DIR`."""

import shlex

from metaformer.cli.options import add_options, options_of
from metaformer.cli.parser import Parser, say

EXAMPLE = """metaformer study mixers.yaml --out studies/mixers --hours 2
  metaformer study report studies/mixers"""
REPORT = "report"


def run(argv: list[str]) -> int:
    """Carry out a study, or write its report anew."""
    return _report(argv[1:]) if argv[:1] == [REPORT] else _study(argv)


def _study(argv: list[str]) -> int:
    parser = Parser(
        "study",
        "Compare token mixers by a plan that is fixed beforehand: tuning, paired seeds, controls, costs and\n"
        "a report. The same command goes on where it stopped; processes and machines may share its folder.\n"
        "`metaformer study report DIR` writes the report anew from the runs.",
        EXAMPLE,
    )
    parser.add_argument("plan", metavar="PLAN.yaml", help="the plan (docs/study.md)")
    parser.add_argument("--out", metavar="DIR", help="folder of the study (default: studies/PLAN)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check plan, data and networks, print the list of jobs, and end",
    )
    parser.add_import()
    from metaformer.study.execute import preview_study, run_study

    add_options(parser, list(options_of(run_study, skip=("command",))))
    args = parser.parse_args(argv)
    parser.run_import(vars(args))
    if args.dry_run:
        for job in preview_study(args.plan):
            say(job)
        return 0
    study = run_study(
        args.plan, args.out, hours=args.hours, command=shlex.join(["metaformer", "study", *argv])
    )
    return _write(str(study.directory.path))


def _report(argv: list[str]) -> int:
    parser = Parser(
        f"study {REPORT}",
        "Write the report of a study anew from its runs, however far they have come.",
        "metaformer study report studies/mixers",
    )
    parser.add_argument("dir", metavar="DIR", help="folder of the study")
    parser.add_import()
    args = parser.parse_args(argv)
    parser.run_import(vars(args))
    return _write(args.dir)


def _write(directory: str) -> int:
    from metaformer.study.report import write_report

    say(f"report: {write_report(directory)}")
    return 0
