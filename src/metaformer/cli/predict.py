"""`metaformer predict RUN|CHECKPOINT|MODEL INPUT…`."""

from metaformer.cli.parser import Parser

EXAMPLE = "metaformer predict runs/demo photo.jpg folder/ 'more/*.png' --out predictions.csv --pictures"


def run(argv: list[str]) -> int:
    """Classify pictures."""
    parser = Parser("predict", "Classify pictures with a run, a checkpoint or a published model.", EXAMPLE)
    parser.add_source()
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="picture, folder (with those inside it) or glob")
    add("--out", metavar="DIR|FILE", help="FILE.jsonl, FILE.csv, or a folder (default: print JSON lines)")
    add("--pictures", action="store_true", help="also draw the predictions on the pictures, beside --out")
    add("--top-k", type=int, default=5, metavar="K", help="classes per picture (default 5)")
    add("--batch-size", type=int, default=32, metavar="N", help="pictures at once (default 32)")
    parser.add_import()
    words = parser.parse_args(argv)
    if words.pictures and not words.out:
        parser.error("--pictures needs --out: say where to")
    parser.run_import(words)
    from metaformer.engine.predict import Predictor
    from metaformer.engine.predictions import write_predictions

    predictor = Predictor(
        words.source,
        words.checkpoint,
        classes=words.classes,
        image_size=words.image_size,
        device=words.device,
        amp=words.amp,
        batch_size=words.batch_size,
        top_k=words.top_k,
        flip=words.flip,
        crops=words.crops,
    )
    for line in write_predictions(predictor.stream(words.inputs), words.out, pictures=words.pictures):
        print(line)
    return 0
