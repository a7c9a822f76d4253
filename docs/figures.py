"""Draw the images of README and docs from the library itself: `make demo`, then `python docs/figures.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from metaformer.layers.scale import Scale
from metaformer.ops.cycle import shift_channels
from metaformer.tasks import TASKS

IMAGES = Path(__file__).parent / "img"
BLUE, ORANGE, GRAY = "#2f6db5", "#e08a2c", "#dcdfe4"


def cycle_fc() -> None:
    """Which position each channel is read at, found by shifting an image of positions."""
    channels, reach = 9, 4
    rows = [("kernel 3", 3), ("kernel 5", 5)]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    for axis, (title, kernel) in zip(axes, rows, strict=True):
        positions = torch.arange(-reach, reach + 1.0).reshape(1, 1, 1, -1).expand(1, channels, 1, -1)
        read = shift_channels(positions.contiguous(), kernel, 3)[0, :, 0, reach].int().tolist()
        for channel in range(channels):
            for offset in range(-reach, reach + 1):
                color = BLUE if offset == read[channel] else "white"
                axis.add_patch(
                    Rectangle((offset - 0.5, channel - 0.5), 1, 1, facecolor=color, edgecolor=GRAY)
                )
            axis.text(read[channel], channel, f"{read[channel]:+d}" if read[channel] else "0", **LABEL)
        axis.axvline(-0.5, color=ORANGE, lw=2)
        axis.axvline(0.5, color=ORANGE, lw=2)
        axis.set(xlim=(-reach - 0.5, reach + 0.5), ylim=(channels - 0.5, -0.5), title=title)
        axis.set_xlabel("position that is read, relative to the output's (orange)")
        axis.set_yticks(range(channels))
    axes[0].set_ylabel("input channel")
    figure.suptitle(
        "sfc_h reads along the width (and sfc_w along the height): the stairs start at the center"
    )
    save(figure, "cycle_fc")


def count_include_pad() -> None:
    """What a constant map becomes at the border, with padding counted and not."""
    ones = torch.ones(1, 1, 5, 5)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.4))
    for axis, counted in zip(axes, (True, False), strict=True):
        mixed = F.avg_pool2d(ones, 3, 1, 1, count_include_pad=counted)[0, 0] - 1
        table(axis, mixed, f"count_include_pad={counted}", "{:+.2f}")
    figure.suptitle(
        "pool(x) − x on a map of ones: PoolFormer (right) leaves a constant map alone at the border too"
    )
    save(figure, "count_include_pad")


def layer_scale() -> None:
    """One number per channel, repeated over samples and positions."""
    scale = Scale(3)
    with torch.no_grad():
        scale.scale.copy_(torch.tensor([0.1, 0.5, 1.0]))
    scaled = scale(torch.ones(2, 3, 3, 3)).detach()
    figure, axes = plt.subplots(2, 3, figsize=(9, 6))
    for sample in range(2):
        for channel in range(3):
            title = f"sample {sample}, channel {channel}"
            table(axes[sample, channel], scaled[sample, channel], title, "{:.1f}", vmin=0)
    figure.suptitle(
        "LayerScale of (0.1, 0.5, 1.0) on a (2, 3, 3, 3) tensor of ones: it stands for (1, C, 1, 1)"
    )
    save(figure, "layer_scale")


def demo() -> None:
    """A prediction of each demo network, side by side: the second image that `predict --draw` drew."""
    height, gap = 360, 12
    tiles = []
    for task in TASKS:
        drawn = sorted(Path("runs", f"demo-{task}", "predictions", "images").iterdir())[1]
        with Image.open(drawn) as image:
            tiles.append(image.convert("RGB").resize((round(image.width * height / image.height), height)))
    sheet = Image.new("RGB", (sum(tile.width + gap for tile in tiles) - gap, height), "white")
    left = 0
    for tile in tiles:
        sheet.paste(tile, (left, 0))
        left += tile.width + gap
    sheet.quantize(128).save(IMAGES / "demo.png", optimize=True)


LABEL = {"ha": "center", "va": "center", "fontsize": 10, "color": "white"}


def table(axis: Axes, values: torch.Tensor, title: str, form: str, vmin: float = -0.6) -> None:
    """A small matrix with its numbers in it."""
    top = 1 if vmin == 0 else 0.4
    axis.imshow(values, cmap="Blues", vmin=vmin, vmax=top)
    for (row, column), value in zip(
        torch.cartesian_prod(*map(torch.arange, values.shape)), values.flatten(), strict=True
    ):
        axis.text(
            column,
            row,
            form.format(value + 0.0),
            **{**LABEL, "color": "white" if value > 0.7 * top else "black"},
        )
    axis.set(title=title, xticks=[], yticks=[])


def save(figure: plt.Figure, name: str) -> None:
    """Write an image under docs/img."""
    figure.tight_layout()
    figure.savefig(IMAGES / f"{name}.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for draw in (cycle_fc, count_include_pad, layer_scale, demo):
        draw()
