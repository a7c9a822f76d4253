"""Benchmarks of real models in very few rounds."""

import json
import subprocess
import sys
from statistics import median

import pytest
import torch

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.bench.run import BenchConfig, bench
from metaformer.errors import ConfigError, UnknownName

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
    assert "poolformer_n" in text and "stages.3" in text and torch.__version__ in text and "1 threads" in text
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


def test_counts_alone() -> None:
    (row,) = bench(["caformer_b36"], COUNTS).rows
    assert row.timing is None and row.counts.params == 98753614


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
sys.argv = ["bench", *sys.argv[1:]]
runpy.run_module("metaformer.bench", run_name="__main__")
"""
    command = [sys.executable, "-c", script, "poolformer_n", "--size=32", "--rounds=1", "--json=-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (model,) = json.loads(done.stdout)["models"]
    assert done.returncode == 0 and model["image_size"] == [32, 32] and model["images_per_second"] > 0
    done = subprocess.run([*command, "--against=timm:resnet18"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "pip install" in done.stderr and "Traceback" not in done.stderr
