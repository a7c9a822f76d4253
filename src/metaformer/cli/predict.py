"""`metaformer predict RUN|CHECKPOINT|MODEL INPUT…`."""

from metaformer.cli.parser import Parser

EXAMPLE = "metaformer predict runs/demo photo.jpg folder/ 'more/*.png' --out predictions.csv --pictures"


def run(argv: list[str]) -> int:
    """Classify pictures."""
    parser = Parser("predict", "Classify pictures with a run, a checkpoint or a published model.", EXAMPLE)
    add = parser.add_argument
    add(
        "source",
        metavar="RUN|CHECKPOINT|MODEL",
        help="run, checkpoint or save_pretrained directory, or model name",
    )
    add("inputs", nargs="+", metavar="INPUT", help="picture, folder (with those inside it) or glob")
    add("--out", metavar="DIR|FILE", help="FILE.jsonl, FILE.csv, or a folder (default: print JSON lines)")
    add("--pictures", action="store_true", help="also draw the predictions on the pictures, beside --out")
    add("--checkpoint", metavar="FILE", help="weights for a model name, in any published format")
    add("--image-size", type=int, metavar="N", help="input height and width (default: the checkpoint's)")
    add("--classes", metavar="FILE", help="class names, one per line, where nothing else tells")
    add("--top-k", type=int, default=5, metavar="K", help="classes per picture (default 5)")
    add("--batch-size", type=int, default=32, metavar="N", help="pictures at once (default 32)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--amp", choices=["none", "bf16", "fp16"], default="none", help="mixed precision")
    add("--flip", action="store_true", help="average with the mirrored picture")
    add("--crops", type=int, choices=[1, 5], default=1, help="centre crop, or centre and corners averaged")
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
