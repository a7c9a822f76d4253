"""The metadata of an exported file as other programs read them."""

from metaformer.tasks import TASKS
from metaformer.tasks.exported import ExportCard


def flat(card: ExportCard) -> dict[str, str]:
    """`names`, `task`, `imgsz`, `stride` and `batch`, which most scripts for exported detectors read."""
    return {
        "names": str(dict(enumerate(card.class_names))),
        "task": card.task or "",
        "imgsz": str(list(card.image_size or _usual(card))),
        "stride": str(card.preprocess.get("size_divisor", 32)),
        "batch": str(card.batch or 1),
    }


def _usual(card: ExportCard) -> tuple[int, int]:
    """Height and width of a usual input."""
    usual = card.preprocess.get("image_size")
    if usual is not None:
        return usual, usual
    short, long = card.preprocess.get("short_side"), card.preprocess.get("long_side")
    return short or card.min_size, long or card.min_size


def model_info(card: ExportCard, prefix: str = "") -> dict[str, str]:
    """What OpenVINO's Model API reads; labels stand between spaces, so that theirs become underscores."""
    values = {
        **(TASKS[card.task].export.model_info if card.task else {}),
        "labels": " ".join("_".join(name.split()) for name in card.class_names),
        "output_raw_scores": "False",
        "resize_type": "crop" if "crop" in card.resize else "fit_to_window",
        "reverse_input_channels": "False",
    }
    return {f"{prefix}{key}": value for key, value in values.items() if value}
