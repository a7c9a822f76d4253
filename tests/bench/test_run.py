"""Measuring a model: what is counted, timed and shown."""

import json
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.backbones.variants import VARIANTS
from metaformer.bench.catalog import catalog, cost, counted, write_table
from metaformer.bench.counts import count
from metaformer.bench.run import BenchConfig, bench
from metaformer.bench.timing import Timing, agreed_ratio, measure, ratios
from metaformer.errors import ConfigError, UnknownName
from metaformer.weights.sources import SOURCES


class Recorded(nn.Module):
    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name, self.calls = name, calls

    def forward(self, x: Tensor) -> None:
        self.calls.append(self.name)
        torch.ones(300, 300) @ torch.ones(300, 300)


def test_all_run_in_each_round_in_alternating_order() -> None:
    calls: list[str] = []
    models, ends = [Recorded("a", calls), Recorded("b", calls)], []

    def after(turn: int) -> None:
        ends.append((turn, len(calls)))

    timings = measure(models, [torch.zeros(1)] * 2, rounds=2, warmup=0, after_round=after)
    (first, middle), (second, end) = ends
    assert (first, second) == (0, 1) and all(len(timing.seconds) == 2 for timing in timings)
    assert calls[middle - 1] == calls[middle] == "b" and calls[end - 1] == "a"


def test_ratios_of_known_times() -> None:
    assert ratios(Timing((1.0, 2.0), 1), Timing((3.0, 2.0), 1)) == (3.0, 1.0)


TINY = MetaFormerConfig(depths=(1, 1, 1, 1), dims=(8, 8, 16, 16), num_classes=10, image_size=(64, 64))


def build(config: MetaFormerConfig) -> MetaFormer:
    with torch.device("meta"):
        return MetaFormer(config)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("randformer")])
def test_frozen_parameters_are_counted_apart(name: str) -> None:
    counts = count(build(VARIANTS[name]))
    _, _, random, wide = VARIANTS[name].depths
    assert counts.params - counts.trainable == random * 196**2 + wide * 49**2


def test_a_convolution_by_hand() -> None:
    counts = count(nn.Conv2d(3, 8, 3, stride=2, padding=1), (16, 16))
    assert counts.macs == counts.convolutions == 8 * 8 * 8 * 3 * 9
    assert counts.activations == 8 * 8 * 8
    assert count(nn.Conv2d(8, 8, 7, padding=3, groups=8), (4, 4), in_chans=8).macs == 4 * 4 * 8 * 49


class Attend(nn.Module):
    """Attention of an image's rows to each other, two heads of width W."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(1, 2, -1, x.shape[3])
        return F.scaled_dot_product_attention(x, x, value=x)


def test_fused_attention_is_counted() -> None:
    counts = count(Attend(), (16, 8), in_chans=2)  # (1, 2 heads, 16 tokens, 8 wide)
    assert counts.attention == counts.macs == 2 * (16 * 16 * 8) * 2


def test_attention_grows_with_the_square_of_the_tokens() -> None:
    config = replace(TINY, mixers=("identity", "identity", "attention(head_dim=16)", "identity"))
    small, large = count(build(config), (64, 64)), count(build(config), (128, 128))
    assert small.attention == 2 * 16 * 16 * 16
    assert large.attention == 16 * small.attention


def test_cyclefc_costs_a_product() -> None:
    plain, cycle = (count(build(replace(TINY, mixers=name)), (64, 64)) for name in ("identity", "cycle_fc"))
    assert cycle.macs - plain.macs == 256 * 8 * 8 + 64 * 8 * 8 + 16 * 16 * 16 + 4 * 16 * 16


def test_pooling_and_norms_stand_apart() -> None:
    plain, pooled = (
        count(build(replace(TINY, mixers=name)), (64, 64)) for name in ("identity", "pooling(size=5)")
    )
    assert pooled.macs == plain.macs
    assert pooled.pooling - plain.pooling == 25 * (256 * 8 + 64 * 8 + 16 * 16 + 4 * 16)
    assert plain.norms == 2 * (256 * 8 + 64 * 8 + 16 * 16 + 4 * 16) + 4 * 16
    assert count(build(replace(TINY, norm="none")), (64, 64)).norms == 0


class Honest(nn.Module):
    """A mixer with `macs`, whose operations counters would count differently."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(dim, dim, 1)

    def macs(self, height: int, width: int) -> int:
        return 7 * height * width

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x)


class FusedHonest(Honest):
    """The same, called by the block with norm and scale."""

    def fused(self, x: Tensor, norm: nn.Module, scale: nn.Module) -> Tensor:
        return scale(self.wide(norm(x)))


@pytest.mark.parametrize("mixer", [Honest, FusedHonest])
def test_a_mixers_macs_replace_what_is_counted(mixer: type[nn.Module]) -> None:
    plain = count(build(replace(TINY, mixers="identity")), (64, 64))
    honest = count(build(replace(TINY, mixers=(mixer, "identity", "identity", mixer))), (64, 64))
    assert honest.macs - plain.macs == 7 * 256 + 7 * 4
    assert honest.by("mixer")[mixer.__name__]["products"] == 7 * 256 + 7 * 4
    assert honest.norms == plain.norms


@pytest.mark.parametrize("what", ["stage", "mixer", "block"])
def test_the_parts_add_up(what: Any) -> None:
    counts = count(build(VARIANTS["caformer_s18"]))
    rows = counts.by(what).values()
    assert sum(row.get("params", 0) for row in rows) == counts.params
    for kind in ("convolutions", "products", "attention", "pooling", "norms", "activations"):
        assert sum(row.get(kind, 0) for row in rows) == getattr(counts, kind)


def test_breakdown_names_stages_and_mixers() -> None:
    counts = count(build(VARIANTS["caformer_s18"]))
    assert list(counts.by("stage")) == ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "head"]
    assert {"SepConv", "Attention", "mlp", "norm", "downsample"} <= set(counts.by("mixer"))
    assert counts.by("mixer")["Attention"]["attention"] == counts.attention


def test_the_model_is_unchanged() -> None:
    model = MetaFormer(TINY).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count(model, (64, 64))
    assert model.training and not model._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


PUBLISHED: dict[str, Any] = json.loads((Path(__file__).parent / "published.json").read_text())["models"]


def agrees(counted: int, printed: str, unit: int) -> bool:
    """Within 1 %, or equal after rounding to the digits that were printed."""
    digits = -int(Decimal(printed).as_tuple().exponent)
    return abs(counted / unit / float(printed) - 1) <= 0.01 or round(counted / unit, digits) == float(printed)


def test_every_published_model_is_in_the_transcription() -> None:
    assert set(VARIANTS) - set(PUBLISHED) == {"poolformer_n"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    row, (params, _) = PUBLISHED[name], cost(name, 224, 1000)
    if isinstance(row["params"], int):
        assert params == row["params"]
    else:
        total = float(row["params"]) + float(row.get("frozen", 0))
        assert agrees(params, f"{total:.1f}" if "." in row["params"] else row["params"], 10**6)


@pytest.mark.parametrize(
    ("name", "size"), [(name, size) for name, row in PUBLISHED.items() for size in row["macs"]]
)
def test_multiply_adds_are_the_published_ones(name: str, size: str) -> None:
    assert agrees(cost(name, int(size), 1000)[1], PUBLISHED[name]["macs"][size], 10**9)


@pytest.mark.parametrize(
    ("name", "size"),
    [("poolformer_s12", 224), ("metaformer_ppaa_s12", 224), ("cyclemlp_b1", 224), ("identityformer_s12", 224),
     ("randformer_s12", 224), ("poolformerv2_s12", 224), ("convformer_s18", 384), ("caformer_s18", 384)],
)  # fmt: skip
def test_one_block_per_stage_gives_the_whole_networks_counts(name: str, size: int) -> None:
    with torch.device("meta"):
        network = MetaFormer(replace(VARIANTS[name], image_size=(size, size)))
    counts = count(network, (size, size))
    assert counted(VARIANTS[name], size, 1000) == (counts.params, counts.macs)


def test_the_table_in_the_package_is_what_is_counted() -> None:
    text = resources.files("metaformer.bench").joinpath("costs.json").read_text()
    assert text == write_table(), "rewrite bench/costs.json with metaformer.bench.catalog.write_table()"


def test_every_model_and_every_published_checkpoint_is_listed() -> None:
    entries = catalog()
    assert {entry.model for entry in entries} == set(VARIANTS)
    assert {entry.name for entry in entries if entry.tag} == {
        name for name, source in SOURCES.items() if not source.data
    }


def test_figures_follow_size_and_classes() -> None:
    entries = {entry.tag: entry for entry in catalog("convformer_s18")}
    small, large, many = (entries[tag] for tag in ("sail_in1k", "sail_in1k_384", "sail_in22k"))
    assert (small.image_size, large.image_size) == (224, 384)
    assert large.macs > 2.9 * small.macs and large.params == small.params == 26774448
    assert many.num_classes == 21841 and many.params > small.params and many.top1 is None


@pytest.mark.parametrize("pattern", ["caformer", "caformer_*", "caformer_?18"])
def test_filters(pattern: str) -> None:
    found = catalog(pattern)
    assert found and all(entry.family == "caformer" for entry in found)


QUICK = BenchConfig(batch=2, size=32, rounds=3, warmup=1, threads=1)
ONCE = BenchConfig(size=64, rounds=1, warmup=0)
COUNTS = BenchConfig(speed=False)


def tiny(depth: int) -> MetaFormer:
    return MetaFormer(MetaFormerConfig(depths=(depth,) * 4, dims=(8, 8, 8, 8), image_size=(64, 64)))


def test_times_and_counts_of_a_model_by_name() -> None:
    before = torch.get_num_threads()
    report = bench(["poolformer_n"], QUICK)
    (row,) = report.rows
    assert row.timing is not None and len(row.timing.seconds) == 3
    assert row.timing.images_per_second == pytest.approx(2 / row.timing.median)
    assert report.machine.threads == 1 and torch.get_num_threads() == before
    text = report.text("stage")
    assert "poolformer_n" in text and "stages.3" in text and torch.__version__ in text and "1 thread;" in text
    assert f"operations: {report.machine.operations}" in text
    json.dumps(report.to_dict())


def test_ratios_are_taken_round_by_round() -> None:
    report = bench([tiny(1)], QUICK, against=tiny(12))
    (pairs,) = report.ratios.values()
    first, second = (row.timing for row in report.rows)
    assert first is not None and second is not None
    assert pairs == tuple(b / a for a, b in zip(first.seconds, second.seconds, strict=True))
    assert median(pairs) > 1.5, "twelve times the blocks must take clearly longer"
    assert "times as fast as" in report.text()


def test_optimize_applies_to_this_librarys_networks() -> None:
    config = BenchConfig(size=64, rounds=1, warmup=0, optimize=True)
    report = bench(["poolformer_n", "semantic_fpn_poolformer_n"], config, against="timm:poolformer_s12")
    assert len(report.ratios) == 2 and "eager, ours optimized" in report.text()
    with pytest.raises(ConfigError, match="optimize"):
        BenchConfig(optimize=True, train=True)


def test_other_libraries_networks() -> None:
    report = bench(["poolformer_s12"], ONCE, against="timm:poolformer_s12")
    ours, theirs = (row.counts for row in report.rows)
    assert (ours.params, ours.macs) == (theirs.params, theirs.macs)
    assert list(report.ratios) == ["poolformer_s12"]
    segmenters = bench(["smp:fpn/poolformer_s12", "smp:unet/resnet18"], COUNTS).rows
    assert [row.image_size for row in segmenters] == [(512, 512)] * 2
    assert segmenters[0].counts.params == 13_307_478, "150 classes"


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_other_types(dtype: str) -> None:
    model = tiny(1)
    config = BenchConfig(size=32, rounds=1, warmup=0, dtype=dtype)  # type: ignore[arg-type]
    assert bench([model], config).rows[0].timing is not None
    assert next(model.parameters()).dtype == torch.float32, "the caller's module is unchanged"


def test_other_mixers() -> None:
    plain, other = (
        bench(["poolformer_s12"], COUNTS, mixers=mixers).rows[0].counts.attention
        for mixers in (None, ["identity", "identity", "identity", "attention"])
    )
    assert other > plain == 0


def test_segmenters_by_name() -> None:
    fpn, upernet = bench(["semantic_fpn_poolformer_n", "upernet_poolformer_n"], ONCE).rows
    assert fpn.image_size == (64, 64) and fpn.timing is not None and upernet.timing is not None
    stages = fpn.counts.by("stage")
    assert {"stem", "stages.0", "stages.3", "norms", "neck", "head"} <= set(stages)
    assert {"Pooling", "mlp"} <= set(fpn.counts.by("mixer"))
    assert fpn.counts.params == sum(row.get("params", 0) for row in stages.values())
    (default,) = bench(["upernet_randformer_s12"], COUNTS, mixers=["identity"]).rows
    assert default.image_size == (512, 512) and len(set(default.counts.mixers.values())) == 1


def test_detectors_by_name() -> None:
    for row in bench(["retinanet_poolformer_n", "mask_rcnn_poolformer_n"], ONCE).rows:
        assert row.image_size == (64, 64) and row.timing is not None and row.counts.macs > 0
    with pytest.raises(ConfigError, match="retinanet_poolformer_n"):
        bench(["retinanet_poolformer_n"], BenchConfig(size=64, rounds=1, train=True))


@pytest.mark.parametrize("name", ["poolformer_n", "semantic_fpn_poolformer_n", "smp:fpn/resnet18"])
def test_training_steps(name: str) -> None:
    report = bench([name], BenchConfig(batch=2, size=64, rounds=1, warmup=0, train=True))
    (row,) = report.rows
    assert row.timing is not None and row.timing.minimum > 0 and "forward and backward" in report.text()


@pytest.mark.parametrize("field", ["batch", "size", "threads", "rounds"])
def test_numbers_below_one_are_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        BenchConfig(**{field: 0})


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("poolformer_s21", UnknownName, "poolformer_s12"),
        ("timm:resnet5O", UnknownName, "resnet50"),
        ("smp:fpn", ConfigError, "smp:KIND/ENCODER"),
        ("smp:fpm/poolformer_s12", UnknownName, "did you mean fpn"),
        ("smp:fpn/poolformer_s13", UnknownName, "poolformer_s12"),
    ],
)
def test_unknown_names_are_refused(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bench([name], QUICK)


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_unknown_devices_are_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        bench([tiny(1)], BenchConfig(device=device))


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
def test_on_a_gpu(compile: bool) -> None:
    config = BenchConfig(batch=8, dtype="bf16", device="cuda", compile=compile, rounds=3)
    report = bench(["poolformer_s12"], config, against="timm:poolformer_s12")
    assert all(row.timing is not None and row.timing.peak_bytes for row in report.rows)


def test_as_a_program_on_a_bare_machine() -> None:
    """With torch, safetensors and numpy alone; asking for timm names what to install."""
    script = """
import runpy, sys
for name in ("timm", "torchvision", "huggingface_hub", "matplotlib", "jsonargparse", "PIL", "tqdm", "yaml"):
    sys.modules[name] = None
args = ["bench", *sys.argv[1:]]
for sys.argv in (args, [*args, "--against=timm:resnet18"]):
    try:
        runpy.run_module("metaformer.bench", run_name="__main__")
    except SystemExit as end:
        print(f"status {end.code or 0}", file=sys.stderr, flush=True)
"""
    command = [sys.executable, "-c", script, "poolformer_n", "--size=32", "--rounds=1", "--json=-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (model,) = json.loads(done.stdout)["models"]
    assert model["image_size"] == [32, 32] and model["images_per_second"] > 0
    alone, _, against = done.stderr.partition("status 0\n")
    assert "pip install" in against and against.endswith("status 1\n"), done.stderr
    assert "Traceback" not in alone + against


@pytest.mark.parametrize(
    ("ours", "theirs", "ratio"),
    [
        ((1.0, 1.0, 1.0), (2.0, 2.1, 2.2), 2.1),
        ((1.0, 1.1, 4.0), (2.0, 2.2, 2.4), 2.0),  # one round disturbed
        ((1.0, 5.0, 5.0), (2.0, 2.0, 2.0), None),  # 0.4 by the median, 2 by the fastest
        ((1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 3.0, 3.0), None),
        ((1.0,), (2.0,), 2.0),
    ],
)
def test_a_ratio_is_given_where_rounds_agree(
    ours: tuple[float, ...], theirs: tuple[float, ...], ratio: float | None
) -> None:
    assert agreed_ratio(Timing(ours, 1), Timing(theirs, 1)) == ratio
