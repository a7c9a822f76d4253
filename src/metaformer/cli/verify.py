"""`metaformer verify NAME|all --data IMAGENET`."""

from metaformer.cli.options import add_options, options_of
from metaformer.cli.parser import Parser, in_options, say, write_json


def run(argv: list[str]) -> int:
    """Print published against measured top-1, one line per checkpoint; 1 where any differs or fails."""
    parser = Parser(
        "verify",
        "Download, check, convert and evaluate published checkpoints; compare top-1 with the published.",
        "metaformer verify all --data IMAGENET",
    )
    from metaformer.inference.verify import verify

    add = parser.add_argument
    add("name", metavar="NAME|all", help="a model, model.tag, a pattern such as 'caformer_*', or all")
    add("--data", required=True, metavar="IMAGENET", help="folder that holds ImageNet")
    add_options(parser, list(options_of(verify)))
    parser.add_json()
    args = vars(parser.parse_args(argv))
    name, data, file = args.pop("name"), args.pop("data"), args.pop("json")
    verdicts = []
    for verdict in verify(name, data, **args):
        say(in_options(verdict.text()))
        verdicts.append(verdict)
    if file:
        write_json(file, [verdict.to_dict() for verdict in verdicts])
    return 0 if all(verdict.ok for verdict in verdicts) else 1
