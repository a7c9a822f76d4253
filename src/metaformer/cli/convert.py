"""`metaformer convert IN OUT --to FORMAT`."""

from metaformer.cli.parser import Parser, say


def run(argv: list[str]) -> int:
    """Rewrite a checkpoint under another project's names."""
    from metaformer.weights.formats import FORMATS

    formats = [name for name, form in FORMATS.items() if not form.dialect_of]
    parser = Parser(
        "convert",
        "Rewrite a checkpoint in another format; the suffix of OUT chooses safetensors or torch.save.",
        "metaformer convert poolformer_s12.pth.tar s12.safetensors --to timm --model poolformer_s12",
    )
    parser.add_argument("source", metavar="IN", help="checkpoint in any published format, or a run")
    parser.add_argument("target", metavar="OUT", help="file to write: .safetensors, .pth, .pt or .bin")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(formats))
    parser.add_argument("--model", metavar="NAME", help="model name, where the file does not identify it")
    parser.add_ema()
    args = parser.parse_args(argv)
    from metaformer.inference.model import ema_choice
    from metaformer.weights.convert import convert

    say(str(convert(args.source, args.target, args.to, args.model, ema_choice(args.ema, args.raw))))
    return 0
