"""A page for each family of networks, and their table, from code and recorded times."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.variants import UNAVAILABLE, VARIANTS, family
from metaformer.bench.catalog import Entry, catalog
from metaformer.registry import parse
from metaformer.weights.sources import SOURCES

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
"""What `python -m benchmarks.suite --record` has kept, a file for each kind of processor and date."""
FORM = {"inference": "ours optimized", "training": "ours eager"}
"""The contender whose time is shown."""
_ROW = re.compile(r"cpu-(\w+)-(inference|training)-(\w+)-b(\d+)-quick")
TYPES = {"fp32": "float32", "bf16": "bfloat16"}


class Family(NamedTuple):
    """What a family is."""

    title: str
    about: str
    paper: str
    address: str


METAFORMER = "Yu et al. MetaFormer Is Actually What You Need for Vision. CVPR 2022."
BASELINES = "Yu et al. MetaFormer Baselines for Vision. TPAMI 2024."
FAMILIES = {
    "poolformer": Family(
        "PoolFormer",
        "MetaFormer blocks whose token mixer is average pooling, which has no weights.",
        METAFORMER,
        "https://arxiv.org/abs/2111.11418",
    ),
    "metaformer": Family(
        "Hybrids and ablations of PoolFormer",
        "PoolFormer-S12 without mixing, and with attention or a linear layer over all positions later on.",
        METAFORMER,
        "https://arxiv.org/abs/2111.11418",
    ),
    "cyclemlp": Family(
        "CycleMLP",
        "Linear layers that read each channel at a position of its own, in a cycle along rows and columns.",
        "Chen et al. CycleMLP: A MLP-like Architecture for Dense Prediction. ICLR 2022.",
        "https://arxiv.org/abs/2107.10224",
    ),
    "identityformer": Family(
        "IdentityFormer",
        "No token mixing at all: what the skeleton does by itself.",
        BASELINES,
        "https://arxiv.org/abs/2210.13452",
    ),
    "randformer": Family(
        "RandFormer",
        "Mixing by frozen random matrices in the last two stages.",
        BASELINES,
        "https://arxiv.org/abs/2210.13452",
    ),
    "poolformerv2": Family(
        "PoolFormerV2",
        "PoolFormer with StarReLU, norms without biases and scaled residual connections.",
        BASELINES,
        "https://arxiv.org/abs/2210.13452",
    ),
    "convformer": Family(
        "ConvFormer",
        "Separable convolutions in all stages.",
        BASELINES,
        "https://arxiv.org/abs/2210.13452",
    ),
    "caformer": Family(
        "CAFormer",
        "Separable convolutions in the first two stages, attention in the last two.",
        BASELINES,
        "https://arxiv.org/abs/2210.13452",
    ),
    "convnext": Family(
        "ConvNeXt",
        "Depthwise convolutions of 7×7 in MetaNeXt blocks: mixer, norm and MLP beside one connection.",
        "Liu et al. A ConvNet for the 2020s. CVPR 2022.",
        "https://arxiv.org/abs/2201.03545",
    ),
    "inception_next": Family(
        "InceptionNeXt",
        "Depthwise convolutions in four branches, a square, two bands and none, in MetaNeXt blocks.",
        "Yu et al. InceptionNeXt: When Inception Meets ConvNeXt. CVPR 2024.",
        "https://arxiv.org/abs/2303.16900",
    ),
    "mambaout": Family(
        "MambaOut",
        "Gated depthwise convolutions that mix channels, too, in place of mixer and MLP.",
        "Yu and Wang. MambaOut: Do We Really Need Mamba for Vision? CVPR 2025.",
        "https://arxiv.org/abs/2405.07992",
    ),
}


class Timing(NamedTuple):
    """A recorded time on one machine."""

    model: str
    mode: str
    dtype: str
    batch: int
    machine: str
    milliseconds: float


def timings() -> list[Timing]:
    """The newest times of each kind of processor."""
    newest = {}
    for file in sorted(RESULTS.glob("*.json")):
        record = json.loads(file.read_text())
        newest[record["kind"]] = record
    found = []
    for record in newest.values():
        machine = machine_name(record["machine"])
        for row in record["rows"]:
            if named := _ROW.fullmatch(row["name"]):
                model, mode, dtype, batch = named.groups()
                times = {one["name"]: one["minimum_ms"] for one in row["contenders"] if not one["failure"]}
                if FORM[mode] in times:
                    found.append(Timing(model, mode, dtype, int(batch), machine, times[FORM[mode]]))
    return found


def machine_name(machine: Mapping[str, str]) -> str:
    """Processor, cores and instructions."""
    kernels = machine["operations"].partition("(")[2].rstrip(")")
    name = machine["device"].removeprefix("cpu: ").replace("(R)", "").replace(" Processor", "")
    return f"{name}, {kernels}"


def speed_table(times: Sequence[Timing]) -> str:
    """Times by network and machine."""
    machines = list(dict.fromkeys(one.machine for one in times))
    lines = [f"| network | | {' | '.join(machines)} |", "|---" * (len(machines) + 2) + "|"]
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for one in times:
        step = "a training step, " if one.mode == "training" else ""
        what = f"{step}batch {one.batch}, {TYPES[one.dtype]}"
        rows.setdefault((one.model, what), {})[one.machine] = one.milliseconds
    for (model, what), by_machine in rows.items():
        cells = (f"{by_machine[name]:.1f} ms" if name in by_machine else "–" for name in machines)
        lines.append(f"| `{model}` | {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(name: str, entries: Sequence[Entry], times: Sequence[Timing]) -> str:
    """The page of a family."""
    about = FAMILIES[name]
    published = next(entry for entry in entries if entry.tag)
    own = [one for one in times if family(one.model) == name]
    missing = [f"- `{model}`: {why}." for model, why in UNAVAILABLE.items() if family(model) == name]
    parts = [
        f"# {about.title}",
        about.about,
        f'```python\nmodel = metaformer.create_model("{published.name}", pretrained=True)\n```',
        "## Networks",
        networks([model for model in VARIANTS if family(model) == name]),
        "## Weights",
        weights(entries),
        "## Speed",
        speed_table(own) if own else "No times are recorded for this family.",
        f"[How times are taken](../models.md#tables); `metaformer bench {published.model}` takes yours.",
        *(["## Not available", "\n".join(missing)] if missing else []),
        "## Source",
        f"{about.paper} <{about.address}>",
    ]
    return "\n\n".join(parts) + "\n"


def networks(models: Sequence[str]) -> str:
    """Sizes of a family's networks, and the mixers of their stages."""
    lines = ["| network | blocks | channels | token mixers |", "|---|---|---|---|"]
    for model in models:
        config = VARIANTS[model]
        sizes = (" ".join(map(str, values)) for values in (config.depths, config.dims))
        lines.append(f"| `{model}` | {' | '.join(sizes)} | {mixers(config)} |")
    return "\n".join(lines)


def mixers(config: MetaFormerConfig) -> str:
    """Mixers of all stages, once where they are the same, with links to their pages."""
    specs = [str(config.block_mixers(stage)[0]) for stage in range(config.stages)]
    links = [f"[`{spec}`](../mixers/{parse(spec)[0]}.md)" for spec in specs]
    return links[0] if len(set(links)) == 1 else ", ".join(links)


def weights(entries: Sequence[Entry]) -> str:
    """Published weights, and networks without."""
    lines = ["| name | params | MACs | input | top-1 | license |", "|---|---|---|---|---|---|"]
    for e in entries:
        top1 = "–" if e.top1 is None else f"{e.top1:.1f}"
        license = SOURCES[e.name].license if e.tag else "–"
        size = f"{e.params / 1e6:.1f} M | {e.macs / 1e9:.2f} G | {e.image_size}"
        lines.append(f"| `{e.name}` | {size} | {top1} | {license} |")
    return "\n".join(lines)


def overview(name: str, entries: Sequence[Entry]) -> str:
    """A family's row in the table of all."""
    models = [model for model in VARIANTS if family(model) == name]
    kinds = dict.fromkeys(parse(str(spec))[0] for model in models for spec in _specs(VARIANTS[model]))
    linked = ", ".join(f"[`{kind}`](mixers/{kind}.md)" for kind in kinds)
    alike = [one for one in entries if (one.image_size, one.num_classes) == (224, 1000)]
    fields = [
        f"[{FAMILIES[name].title}](models/{name}.md)",
        ", ".join(f"`{model}`" for model in models),
        linked,
        span([one.params / 1e6 for one in alike], "M"),
        span([one.macs / 1e9 for one in alike], "G"),
        span([one.top1 for one in entries if one.top1 is not None], "%"),
    ]
    return f"| {' | '.join(fields)} |"


def _specs(config: MetaFormerConfig) -> Iterator[object]:
    return (spec for stage in range(config.stages) for spec in config.block_mixers(stage))


def span(values: Sequence[float], unit: str) -> str:
    """The smallest and the largest value."""
    least, most = f"{min(values):.1f}", f"{max(values):.1f}"
    return f"{least} {unit}" if least == most else f"{least}–{most} {unit}"


def pages_and_tables() -> tuple[dict[str, str], str]:
    """Pages by file name in `docs/models`, and the tables of all families."""
    times, pages = timings(), {}
    table = ["| family | networks | token mixers | params | MACs | top-1 |", "|---|---|---|---|---|---|"]
    for name, group in groupby(catalog(), key=lambda entry: entry.family):
        entries = list(group)
        pages[f"{name}.md"] = page(name, entries, times)
        table.append(overview(name, entries))
    return pages, "\n".join([*table, "", speed_table(times)])
