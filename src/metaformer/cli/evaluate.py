"""`metaformer evaluate RUN|CHECKPOINT|MODEL --data DIR`."""

import os

from metaformer.cli.parser import Parser, numbers

EXAMPLE = "metaformer evaluate caformer_s18.sail_in1k --data IMAGENET --real real.json"


def run(argv: list[str]) -> int:
    """Measure accuracy, mean IoU of pixels or average precision of objects, whole and by class."""
    parser = Parser("evaluate", "Measure the accuracy of a run, a checkpoint or a published model.", EXAMPLE)
    parser.add_source()
    add = parser.add_argument
    add("--data", metavar="DIR", help="folder with the data set (default: the run's own)")
    add("--split", metavar="NAME", help="sub-folder to evaluate on (default: the run's own, or val)")
    add("--crop", type=float, metavar="SHARE", help="share of the image that the crop keeps")
    add("--interpolation", choices=["bicubic", "bilinear"], help="resampling")
    add("--batch-size", type=int, default=128, metavar="N", help="images at once (default 128)")
    add("--workers", type=int, default=4, metavar="N", help="processes that read images (default 4)")
    add("--real", metavar="FILE", help="ReaL labels: JSON list of accepted classes per image, in file order")
    add("--subset", metavar="FILE", help="class names, one per line: only these count")
    add("--scales", metavar="F,F,…", help="pixels and objects: sizes to look at, such as 0.75,1,1.25")
    add("--slide", type=int, metavar="PIXELS", help="segmentation: look through windows of this side (0: no)")
    add(
        "--layout",
        help="segmentation: ade20k, voc, cityscapes, coco_stuff or folders; detection: coco, voc or yolo "
        "(default: found out)",
    )
    add("--raw", action="store_true", help="the raw weights where the run kept an average too")
    parser.add_json()
    parser.add_import()
    words = parser.parse_args(argv)
    parser.run_import(words)
    from metaformer.inference.evaluate import evaluate

    report = evaluate(
        words.source,
        words.data,
        checkpoint=words.checkpoint,
        split=words.split,
        classes=words.classes,
        image_size=words.image_size,
        batch_size=words.batch_size,
        workers=words.workers,
        device=words.device,
        amp=words.amp,
        crop=words.crop,
        interpolation=words.interpolation,
        flip=words.flip,
        crops=words.crops,
        real_labels=words.real,
        class_subset=words.subset,
        scales=numbers(words.scales, "--scales") if words.scales else None,
        slide=words.slide,
        layout=words.layout,
        raw=words.raw,
    )
    if os.environ.get("RANK", "0") == "0":  # under torchrun every process measures, one tells
        print(report.text())
        if words.json:
            report.save(words.json)
    return 0
