"""`metaformer verify NAME|all --data IMAGENET`."""

from metaformer.cli.parser import Parser, write_json


def run(argv: list[str]) -> int:
    """Print published against measured top-1, one line per checkpoint; 1 where any differs or fails."""
    parser = Parser(
        "verify",
        "Download, check, convert and evaluate published checkpoints; compare top-1 with the published.",
        "metaformer verify all --data IMAGENET",
    )
    add = parser.add_argument
    add("name", metavar="NAME|all", help="a model, model.tag, a pattern such as 'caformer_*', or all")
    add("--data", required=True, metavar="IMAGENET", help="folder that holds ImageNet")
    add("--split", default="val", metavar="NAME", help="sub-folder to evaluate on (default val)")
    add("--batch-size", type=int, default=128, metavar="N", help="images at once (default 128)")
    add("--workers", type=int, default=4, metavar="N", help="processes that read images (default 4)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--amp", choices=["none", "bf16", "fp16"], default="none", help="mixed precision")
    parser.add_json()
    words = parser.parse_args(argv)
    from metaformer.inference.verify import verify

    verdicts = []
    for verdict in verify(
        words.name,
        words.data,
        split=words.split,
        batch_size=words.batch_size,
        workers=words.workers,
        device=words.device,
        amp=words.amp,
    ):
        print(verdict.text(), flush=True)
        verdicts.append(verdict)
    if words.json:
        write_json(words.json, [verdict.to_dict() for verdict in verdicts])
    return 0 if all(verdict.ok for verdict in verdicts) else 1
