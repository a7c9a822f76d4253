"""Predict with an exported network: images in; classes, label maps or objects out, without PyTorch.

    python run.py FILE.onnx IMAGE|FOLDER|ANIMATION... [--out FILE.csv|FILE.jsonl|FOLDER] [--draw] [--score X]

It needs numpy, pillow and onnxruntime alone. The file says itself how an image becomes input and what its
outputs are; `metaformer export RUN FILE.onnx --runner DIR` writes this program as DIR/run.py.
"""

import argparse
import csv
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SCHEMA = 1  # version of the files' metadata
BATCH = 8  # images at once, where the file takes any number
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"}
ANIMATED = {".gif", ".webp", ".png", ".apng"}
MAX_PIXELS = 50_000_000
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the EXIF orientation
STRONG, WEAK, PANEL = (64, 140, 255), (88, 96, 112), (24, 26, 32)  # colors of bars, and below them
Outputs = dict[str, NDArray[Any]]
Line = dict[str, Any]


class Problem(Exception):
    """Something that the user can put right, in one line."""


# Images


def image_files(name: str) -> list[Path]:
    """A file; or the images in a folder and below, sorted, without what is hidden."""
    path = Path(name)
    if not path.exists():
        raise Problem(f"{name}: no such file or folder")
    if not path.is_dir():
        return [path]
    below = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    found = [file for file in below if not any(part[0] == "." for part in file.relative_to(path).parts)]
    if not found:
        raise Problem(f"{name}: no images in this folder")
    return sorted(found)


def read_images(
    path: Path, background: Sequence[int] | None, frames: bool
) -> Iterator[tuple[int | None, Image.Image]]:
    """An image as upright 8-bit RGB; with `frames`, those of an animation, each with its number."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS:,} pixels")
            if frames and path.suffix.lower() in ANIMATED and getattr(image, "is_animated", False):
                for number in range(getattr(image, "n_frames", 1)):
                    image.seek(number)
                    yield number, upright_rgb(image, background)
            else:
                yield None, upright_rgb(image, background)
    except Exception as error:  # Pillow's decoders raise nearly every class there is on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Problem(f"{path}: cannot be read as an image ({reason})") from error


def upright_rgb(image: Image.Image, background: Sequence[int] | None) -> Image.Image:
    """The current frame as 8-bit RGB; transparent pixels are blended on a color, if there is one."""
    tiles: Any = getattr(image, "tile", None)
    raw, clear = tiles[0][3] if tiles else None, image.info.get("transparency")
    image.load()
    # Pillow leaves a PNG's transparent color in the numbers of the file, not of the pixels.
    if isinstance(clear, int) and raw in ("L;2", "L;4"):
        image.info["transparency"] = clear * (85 if raw == "L;2" else 17)
    elif isinstance(clear, tuple) and raw == "RGB;16B":
        image.info["transparency"] = tuple(channel >> 8 for channel in clear)
    try:
        turn = UPRIGHT.get(image.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata do not make the pixels unusable
        turn = None
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit gray, which `convert` would clip
        values, clear = np.asarray(image).astype(np.int64), image.info.get("transparency")
        image = Image.fromarray(((values.clip(0, 65535) + 128) // 257).astype(np.uint8))
        if isinstance(clear, int):
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    if background is not None and image.has_transparency_data:
        below = Image.new("RGBA", image.size, tuple(background))
        image = Image.alpha_composite(below, image.convert("RGBA"))
    rgb = image.convert("RGB")
    return rgb.copy() if turn is None else rgb.transpose(turn)


# The file


class Network:
    """An exported file, whose metadata have been compared with its content."""

    def __init__(self, file: str) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reports its use otherwise
        try:
            import onnxruntime
        except ImportError as error:
            raise Problem("onnxruntime is not installed: pip install onnxruntime numpy pillow") from error
        if not file.lower().endswith(".onnx"):
            raise Problem(f"{file}: an exported file's name ends in .onnx")
        try:
            content, options = Path(file).read_bytes(), onnxruntime.SessionOptions()
            options.log_severity_level = 4  # errors come as exceptions
            self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except OSError as error:
            raise Problem(f"{file}: {error.strerror}") from error
        except Exception as error:  # onnxruntime has a class of its own for each kind of damage
            raise Problem(f"{file}: onnxruntime cannot read it ({' '.join(str(error).split())})") from error
        self.card = read_card(file, self.session.get_modelmeta().custom_metadata_map, content)
        self.takes_sizes = "sizes" in [one.name for one in self.session.get_inputs()]

    def run(self, images: Sequence[Image.Image], divisor: int) -> list[Outputs]:
        """Outputs for each of some images of one size, padded with 0 to multiples of a divisor."""
        card, pixels = self.card, np.stack([np.asarray(image) for image in images])
        sizes = np.array([pixels.shape[1:3]] * len(images), np.int64)
        if card["input"] == "float":
            mean, std = (np.array(card["preprocess"][key], np.float32) for key in ("mean", "std"))
            pixels = (pixels * (1 / (255 * std)) - mean / std).astype(np.float32)
        missing = max(0, (card["batch"] or 0) - len(images))
        below, right = (-side % divisor for side in pixels.shape[1:3])
        pixels = np.pad(pixels, ((0, missing), (0, below), (0, right), (0, 0)))
        height, width = pixels.shape[1:3]
        if card["image_size"] not in (None, [height, width]) or min(height, width) < card["min_size"]:
            takes = card["image_size"] or f"at least {card['min_size']}x{card['min_size']}"
            raise Problem(f"becomes {height}x{width} pixels; this file takes {takes}")
        inputs = {"images": pixels if card["input"] == "uint8" else pixels.transpose(0, 3, 1, 2).copy()}
        if self.takes_sizes:
            inputs["sizes"] = np.pad(sizes, ((0, missing), (0, 0)), constant_values=1)
        try:
            found = zip(*self.session.run(card["outputs"], inputs), strict=True)
        except Exception as error:  # such as too little memory
            raise Problem(f"onnxruntime cannot compute it ({' '.join(str(error).split())})") from error
        return [dict(zip(card["outputs"], one, strict=True)) for one in found][: len(images)]


def read_card(file: str, metadata: dict[str, str], content: bytes) -> Line:
    """What a file says of itself; the hash in it is of what stands before the metadata."""
    try:
        card: Line = json.loads(metadata.get("metaformer", "{}"))
        if card.get("schema") != SCHEMA:
            raise Problem(f"{file}: has no metadata of schema {SCHEMA}: metaformer export writes them")
        body = content[: card["content"]["size"]]
        if hashlib.sha256(body).hexdigest() != card["content"]["sha256"]:
            raise Problem(f"{file}: its content is not what its metadata say: it is damaged, or was changed")
        if card["task"] not in TASKS:
            raise Problem(f"{file}: task {card['task']!r} is not known to this program")
        card["classes"] = card["classes"] or [str(k) for k in range(card["num_classes"])]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise Problem(f"{file}: its metadata are damaged") from error
    return card


# Tasks


class Result(NamedTuple):
    """What is written of an image."""

    line: Line
    drawn: Any
    """Bars; a label map; or the masks of the objects."""


class Task:
    """How images become input (`resize`), and outputs become what is written (`result`) and drawn."""

    table, frames, divisor = False, True, 1
    """Whether results are also rows of a table; animations are taken apart; what input is padded to."""

    def __init__(self, card: Line, score: float | None) -> None:
        self.preprocess, self.metadata, self.score = card["preprocess"], card["metadata"], score
        self.classes: list[str] = card["classes"]


class Classify(Task):
    """The most probable classes of an image."""

    table, frames = True, False

    def resize(self, image: Image.Image) -> Image.Image:
        """The shorter side resized, the other one in proportion; the center: rounded as torchvision does."""
        side, crop = self.preprocess["image_size"], self.preprocess["crop"]
        width, height = (int(int(side / crop) * one / min(image.size)) for one in image.size)
        left, top = round((width - side) / 2), round((height - side) / 2)
        kind = Image.Resampling[self.preprocess["interpolation"].upper()]
        if width * height > MAX_PIXELS:  # a long strip: nothing but the crop is resized
            across, down = image.width / width, image.height / height
            right, bottom = (left + side) * across, (top + side) * down
            box = (left * across, top * down, min(right, image.width), min(bottom, image.height))
            return image.resize((side, side), kind, box)
        return image.resize((width, height), kind).crop((left, top, left + side, top + side))

    def result(self, outputs: Outputs, line: Line, image: Image.Image) -> Result:
        scores = outputs["probabilities"]
        best = np.argsort(-scores, kind="stable")[:5].tolist()
        names, values = [self.classes[k] for k in best], scores[best].tolist()
        bars = list(zip(names, [STRONG, WEAK, WEAK], values, strict=False))
        return Result({**line, "labels": names, "scores": values, "indices": best}, bars)

    def row(self, line: Line) -> dict[str, str]:
        """Cells of a table."""
        cells = {"path": line["path"]}
        for rank, (label, score) in enumerate(zip(line["labels"], line["scores"], strict=True), start=1):
            suffix = f"_{rank}" if rank > 1 else ""
            cells |= {f"label{suffix}": label, f"score{suffix}": f"{score:.6f}"}
        return cells

    def draw(self, result: Result, image: Image.Image) -> Image.Image:
        return draw_panel(image, result.drawn)


class Multilabel(Classify):
    """All classes of an image whose probability reaches their threshold."""

    def result(self, outputs: Outputs, line: Line, image: Image.Image) -> Result:
        scores = dict(zip(self.classes, outputs["probabilities"].tolist(), strict=True))
        least = dict(zip(self.classes, self.metadata["thresholds"], strict=True))
        if self.score is not None:
            least = dict.fromkeys(least, self.score)
        order = sorted(scores, key=lambda name: -scores[name])
        labels = [name for name in order if scores[name] >= least[name]]
        bars = [(name, STRONG if name in labels else WEAK, scores[name]) for name in order]
        rounded = {name: round(score, 6) for name, score in scores.items()}
        return Result({**line, "labels": labels, "scores": rounded}, bars[: max(6, len(labels))])

    def row(self, line: Line) -> dict[str, str]:
        separator = ";" if any(" " in name for name in self.classes) else " "
        cells = {"path": line["path"], "labels": separator.join(line["labels"])}
        names = {name: f"score {name}" if name in cells else name for name in self.classes}
        return cells | {names[name]: f"{score:.6f}" for name, score in line["scores"].items()}


def fitted_size(size: tuple[int, int], preprocess: Line) -> tuple[int, int]:
    """Width and height scaled to fit into a box of two sides, in either orientation."""
    factor, long, short = (preprocess[key] for key in ("scale", "long_side", "short_side"))
    if long is not None:
        long, short = int(long * factor), int(short * factor)
        factor = min(max(long, short) / max(size), min(long, short) / min(size))
    width, height = (max(1, int(side * factor + 0.5)) for side in size)
    return width, height


class Detect(Task):
    """Objects with boxes, and masks where the network has them."""

    divisor = 32

    def __init__(self, card: Line, score: float | None) -> None:
        super().__init__(card, score)
        chosen = self.metadata["score"]  # of the best F1 on the run's validation data
        self.least = score if score is not None else 0.3 if chosen is None else min(0.3, chosen)
        self.drawn = self.least if score is not None or chosen is None else chosen

    def resize(self, image: Image.Image) -> Image.Image:
        return image.resize(fitted_size(image.size, self.preprocess), Image.Resampling.BILINEAR)

    def result(self, outputs: Outputs, line: Line, image: Image.Image) -> Result:
        there = slice(int(outputs["count"]))
        rows = np.flatnonzero(outputs["scores"][there] >= self.least)
        own, boxes = fitted_size(image.size, self.preprocess), outputs["boxes"][rows]
        if own != image.size:
            boxes = boxes * np.array(image.size * 2, np.float32) / np.array(own * 2, np.float32)
        found = zip(
            *(x.tolist() for x in (outputs["classes"][rows], outputs["scores"][rows], boxes)), strict=True
        )
        objects = [
            {"label": k, "name": self.classes[k], "score": round(score, 4), "box": [round(x, 2) for x in box]}
            for k, score, box in found
        ]
        masks = outputs["masks"][rows] if "masks" in outputs else [None] * len(rows)
        return Result({**line, "width": image.width, "height": image.height, "objects": objects}, masks)

    def draw(self, result: Result, image: Image.Image) -> Image.Image:
        size = image.size
        image = at_screen_size(image, 384, Image.Resampling.BICUBIC)
        scales = (image.width / size[0], image.height / size[1]) * 2
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(max(12, min(image.width, 4096) // 40))
        for one, mask in reversed(list(zip(result.line["objects"], result.drawn, strict=True))):
            if one["score"] < self.drawn:
                continue
            color, box = (
                tuple(self.metadata["palette"][one["label"]]),
                [round(side * scale) for side, scale in zip(one["box"], scales, strict=True)],
            )
            if mask is not None and box[2] > box[0] and box[3] > box[1]:
                size = (box[2] - box[0], box[3] - box[1])
                inside = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.BILINEAR)) >= 0.5
                image.paste(color, (box[0], box[1]), Image.fromarray(inside * np.uint8(115)))
            draw.rectangle(box, outline=color, width=max(2, image.width // 300))
            text = f"{one['name']} {one['score']:.2f}"
            draw.rectangle(draw.textbbox((box[0], box[1]), text, font), fill=color)
            draw.text((box[0], box[1]), text, "black" if sum(color) > 380 else "white", font)
        return image


class Segment(Task):
    """The class of each pixel."""

    def resize(self, image: Image.Image) -> Image.Image:
        """As for detection, then again so that both sides are multiples of the divisor."""
        image = image.resize(fitted_size(image.size, self.preprocess), Image.Resampling.BILINEAR)
        unit = self.preprocess["size_divisor"]
        width, height = (-(-side // unit) * unit for side in image.size)
        return image.resize((width, height), Image.Resampling.BILINEAR)

    def result(self, outputs: Outputs, line: Line, image: Image.Image) -> Result:
        if "probabilities" in outputs:
            # A logarithm is the logit but for a constant of its pixel, and resizing is linear: the largest is
            # that of the network's resized logits.
            scores = np.log(outputs["probabilities"].clip(np.finfo(np.float32).tiny))
        else:
            # The class of each pixel alone is known: around a new pixel each has its share of the weights.
            scores = (outputs["labels"] == np.arange(len(self.classes))[:, None, None]).astype(np.float32)
        labels = resized_labels(scores, image.height, image.width)
        areas = np.bincount(labels.ravel())
        order = sorted(np.flatnonzero(areas).tolist(), key=lambda k: (-areas[k], k))
        shares = {self.classes[k]: int(areas[k]) / labels.size for k in order}
        return Result({**line, "width": image.width, "height": image.height, "classes": shares}, labels)

    def mask(self, labels: NDArray[Any]) -> Image.Image:
        """Label map with a palette, or as 16-bit gray for more than 255 classes."""
        if len(self.classes) > 255:
            return Image.fromarray(labels.astype(np.uint16))
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(self.classes)], colors[255] = self.metadata["palette"], (224, 224, 192)  # 255: ignored
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(colors.tobytes())
        return image

    def draw(self, result: Result, image: Image.Image) -> Image.Image:
        labels, palette = result.drawn, np.array(self.metadata["palette"], np.uint8)
        painted = np.where(palette[labels].any(2, keepdims=True), palette[labels], np.asarray(image))
        pixels = np.array(Image.blend(image, Image.fromarray(painted), 0.5))  # black: the image alone
        pixels[:, 1:][labels[:, 1:] != labels[:, :-1]] = 255
        pixels[1:][labels[1:] != labels[:-1]] = 255
        color = dict(zip(self.classes, map(tuple, palette.tolist()), strict=True))
        bars = [(name, color[name], share) for name, share in result.line["classes"].items()]
        return draw_panel(Image.fromarray(pixels), bars[:12])


TASKS: dict[str, Callable[[Line, float | None], Any]] = {
    "classify": Classify,
    "multilabel": Multilabel,
    "segment": Segment,
    "detect": Detect,
}


def taps(old: int, new: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The two old pixels around each new one, and the weight of the second: bilinear, as PyTorch rounds."""
    position = ((np.arange(new) + 0.5) * float(np.float32(old / new)) - 0.5).clip(0).astype(np.float32)
    low = position.astype(np.int64).clip(max=old - 1)
    return low, (low + 1).clip(max=old - 1), (position - low).clip(0, 1).astype(np.float32)


def resized_labels(scores: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """The largest of resized scores (K, h, w) at each pixel (H, W), some rows at a time."""
    top, bottom, down = taps(scores.shape[1], height)
    left, right, across = taps(scores.shape[2], width)
    labels = np.empty((height, width), np.uint16)
    for first in range(0, height, 32):
        rows = slice(first, first + 32)
        weight = down[rows, None]
        part = scores[:, top[rows]] * (1 - weight) + scores[:, bottom[rows]] * weight
        labels[rows] = (part[:, :, left] * (1 - across) + part[:, :, right] * across).argmax(0)
    return labels


def at_screen_size(image: Image.Image, width: int, kind: Image.Resampling) -> Image.Image:
    """An image, enlarged to a width where it is small, and reduced to what JPEG holds where it is long."""
    reduced = min(1.0, 30_000 / max(image.size))
    scale = max(1, min(-(-width // image.width), 4096 // image.height)) if reduced == 1 else reduced
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), kind)


def draw_panel(image: Image.Image, bars: Sequence[tuple[str, tuple[int, ...], float]]) -> Image.Image:
    """Bars with names, colors and lengths of 0 … 1 below an image, which is enlarged where it is small."""
    image = at_screen_size(image, 320, Image.Resampling.NEAREST)
    letters = max(14, min(image.width, 4096) // 32)
    line, font = letters * 2, ImageFont.load_default(letters)
    canvas = Image.new("RGB", (max(image.width, 320), image.height + line * len(bars)), PANEL)
    canvas.paste(image)
    draw = ImageDraw.Draw(canvas)
    for row, (name, color, share) in enumerate(bars):
        y = image.height + row * line
        draw.rectangle((0, y + 2, max(3, share * canvas.width), y + line - 3), fill=color)
        for x, text, anchor in ((letters, name, "lm"), (canvas.width - letters, f"{share:.1%}", "rm")):
            draw.text((x, y + line / 2), text, "white", font, anchor, stroke_width=1, stroke_fill=PANEL)
    return canvas


# Output


class Output:
    """Where results go: JSON lines on the screen; one file; or a folder, with label maps and drawings too."""

    def __init__(self, task: Any, out: str | None, draw: bool) -> None:
        suffix = Path(out or "").suffix.lower()
        if suffix == ".csv" and not task.table:
            raise Problem(f"{out}: results of this task are no table: choose .jsonl or a folder")
        self.task, self.draw, self.taken = task, draw, set[str]()
        self.files: list[tuple[TextIO, Path]] = []
        one, self.folder = suffix in (".csv", ".jsonl"), Path(out or "")
        self.mask = task.mask if isinstance(task, Segment) and out is not None and not one else None
        self.lines = sys.stdout if out is None else None
        self.table: Any = None
        if out is not None and suffix != ".csv":
            self.lines = self.open(self.folder if one else self.folder / "predictions.jsonl")
        if out is not None and suffix != ".jsonl" and task.table:
            file = self.open(self.folder if one else self.folder / "predictions.csv")
            self.table = csv.writer(file, lineterminator="\n")
        self.folder, self.header = self.folder.parent if one else self.folder, True

    def open(self, file: Path) -> TextIO:
        """A file that appears when it is complete."""
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = open(f"{file}.part", "w", encoding="utf-8", errors="backslashreplace", newline="")  # noqa: SIM115
        self.files.append((stream, file))
        return stream

    def write(self, result: Result, frame: int | None, image: Image.Image) -> None:
        line = result.line if frame is None else {**result.line, "frame": frame}
        name = wanted = Path(line["path"]).stem + ("" if frame is None else f"_{frame:06d}")
        number = 1
        while name.casefold() in self.taken:
            number += 1
            name = f"{wanted}_{number}"
        self.taken.add(name.casefold())
        if self.mask is not None:
            line = {**line, "mask": f"masks/{name}.png"}
            self.save(self.mask(result.drawn), line["mask"])
        if self.lines is not None:
            print(json.dumps(line, ensure_ascii=False), file=self.lines)
        if self.table is not None:
            row = self.task.row(line)
            if self.header:
                self.table.writerow(map(cell, row))
            self.table.writerow(map(cell, row.values()))
            self.header = False
        if self.draw:
            self.save(self.task.draw(result, image), f"images/{name}.jpg")

    def save(self, image: Image.Image, name: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, quality=92)

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        for stream, file in self.files:
            stream.close()
            os.replace(stream.name, file) if error is None else os.unlink(stream.name)


def cell(text: str) -> str:
    """A cell of a table that spreadsheets open: no control characters, and no formula."""
    codes = (*range(32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
    text = text.translate({code: json.dumps(chr(code))[1:-1] for code in codes} | {127: "\\u007f"})
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def predict(
    network: Network, task: Any, files: Sequence[Path], report: Callable[[object], None]
) -> Iterator[tuple[Result, int | None, Image.Image]]:
    """Results in order, with the number of a frame and the image; images of one size are computed at once."""
    batch: list[tuple[Path, int | None, Image.Image]] = []
    inputs: list[Image.Image] = []

    def results() -> Iterator[tuple[Result, int | None, Image.Image]]:
        try:
            found = network.run(inputs, task.divisor) if batch else []
            for (path, frame, image), outputs in zip(batch, found, strict=True):
                yield task.result(outputs, {"path": str(path)}, image), frame, image
        except Problem as problem:
            for path, *_ in batch:
                report(f"{path}: {problem}")
        batch.clear()
        inputs.clear()

    most = network.card["batch"] or BATCH
    for path in files:
        try:
            for frame, image in read_images(path, task.preprocess["background"], task.frames):
                resized = task.resize(image)
                if len(batch) == most or (inputs and inputs[0].size != resized.size):
                    yield from results()
                batch.append((path, frame, image))
                inputs.append(resized)
        except Problem as problem:
            report(problem)
    yield from results()


def main() -> int:
    parser = argparse.ArgumentParser(description="Predict with an exported network, without PyTorch.")
    parser.add_argument("file", metavar="FILE.onnx")
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER|ANIMATION")
    parser.add_argument("--out", metavar="FILE.csv|FILE.jsonl|FOLDER", help="default: print JSON lines")
    parser.add_argument(
        "--draw", action="store_true", help="also write images/ with the results drawn on them"
    )
    text = "detection: leave out objects with a lower score; multi-label: predict classes from this score on"
    parser.add_argument("--score", type=float, metavar="X", help=text)
    args, problems = parser.parse_args(), list[object]()
    if args.draw and args.out is None:
        parser.error("--draw needs --out")
    if args.score is not None and not 0 <= args.score <= 1:
        parser.error("--score must lie between 0 and 1")

    def report(problem: object) -> None:
        problems.append(problem)
        print(f"{parser.prog}: error: {problem}", file=sys.stderr)

    try:
        files = [file for name in args.images for file in image_files(name)]
        network = Network(args.file)
        task = TASKS[network.card["task"]](network.card, args.score)
        if args.score is not None and not isinstance(task, Multilabel | Detect):
            raise Problem("--score: no option of this task")
        with Output(task, args.out, args.draw) as output:
            for result, frame, image in predict(network, task, files, report):
                output.write(result, frame, image)
    except (Problem, OSError) as problem:
        report(problem)
    except KeyError as missing:
        report(f"{args.file}: its metadata lack {missing}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
