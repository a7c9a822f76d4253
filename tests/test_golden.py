"""What the original implementations compute, through the public loader from the original key names."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer, MetaFormerFeatures
from metaformer.weights.load import load_weights

GOLDEN = Path(__file__).parent / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())
SMALL = (8, 16, 20, 28)
POOLFORMER = MetaFormerConfig(num_classes=7, image_size=(96, 96), dims=SMALL, depths=(1, 2, 1, 1))
BASELINE = MetaFormerConfig(
    num_classes=7,
    image_size=(96, 96),
    dims=SMALL,
    depths=(1, 1, 2, 1),
    norm="group_norm(bias=False)",
    norm_eps=1e-6,
    act="star_relu",
    mlp_bias=False,
    layer_scale=(None,) * 4,
    res_scale=(None, None, 1.0, 1.0),
    embed_norm="layer_norm(bias=False)",
    head="pool_norm_fc",
)
CONVFORMER = replace(BASELINE, mixers="sepconv", norm="layer_norm(bias=False)", head="pool_norm_mlp")
CONFIGS = {
    "poolformer": replace(POOLFORMER, mlp_ratios=(4, 4, 4, 2)),
    "poolformer_pool5_layernorm_nols": replace(
        POOLFORMER, depths=(1,) * 4, mixers="pooling(size=5)", norm="layer_norm", layer_scale=(None,) * 4
    ),
    "cyclemlp": replace(
        POOLFORMER,
        depths=(1, 1, 2, 1),
        mlp_ratios=(4, 8, 4, 4),
        mixers="cycle_mlp",
        norm="layer_norm",
        layer_scale=(None,) * 4,
    ),
    "metaformer_ppaf": replace(
        POOLFORMER,
        depths=(1,) * 4,
        dims=(32, 32, 64, 64),
        mixers=("pooling", "pooling", "attention(proj_bias=True)", "spatial_fc"),
        norm="layer_norm",
        pos_embed=(False, False, True, False),
    ),
    "identityformer": replace(BASELINE, mixers="identity"),
    "poolformerv2": BASELINE,
    "randformer": replace(BASELINE, mixers=("identity", "identity", "random", "random")),
    "convformer": CONVFORMER,
    "caformer": replace(
        CONVFORMER,
        depths=(1,) * 4,
        dims=(8, 16, 32, 64),
        mixers=("sepconv", "sepconv", "attention", "attention"),
    ),
}
TOLERANCE, GRADIENT_TOLERANCE, SMALL_GRADIENT = 1e-5, 1e-4, 0.01


def under(vectors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in vectors.items() if name.startswith(prefix)}


def test_every_file_is_checked() -> None:
    assert {path.stem for path in GOLDEN.glob("*.safetensors")} == set(CONFIGS) == set(INDEX)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name: str) -> None:
    vectors = load_file(GOLDEN / f"{name}.safetensors")
    model = MetaFormer(CONFIGS[name]).eval()
    report = load_weights(model, under(vectors, "state."))
    assert report.complete and report.fraction == 1.0
    assert sum(p.numel() for p in model.parameters()) == INDEX[name]["params"]
    for size in INDEX[name]["sizes"]:
        key = f"{size[0]}x{size[1]}"
        with torch.no_grad():
            close(model(vectors[f"input.{key}"]), vectors[f"logits.{key}"], f"logits at {key}")


@pytest.mark.parametrize("name", [name for name in CONFIGS if INDEX[name]["pyramid"]])
def test_pyramid(name: str) -> None:
    vectors = load_file(GOLDEN / f"{name}.safetensors")
    model = MetaFormerFeatures(replace(CONFIGS[name], feature_norm="fresh")).eval()
    report = load_weights(model, under(vectors, "state.") | under(vectors, "pyramid_state."))
    assert report.fraction == 1.0 and not report.fresh
    for size in INDEX[name]["sizes"]:
        key = f"{size[0]}x{size[1]}"
        with torch.no_grad():
            levels = model(vectors[f"input.{key}"])
        for i, level in enumerate(levels):
            close(level, vectors[f"pyramid.{key}.{i}"], f"level {i} at {key}")


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients(name: str) -> None:
    vectors = load_file(GOLDEN / f"{name}.safetensors")
    model = MetaFormer(CONFIGS[name]).eval()
    load_weights(model, under(vectors, "state."))
    size = INDEX[name]["sizes"][0]
    model(vectors[f"input.{size[0]}x{size[1]}"]).square().sum().backward()
    ours = {key: p.grad if p.grad is not None else torch.zeros_like(p) for key, p in model.named_parameters()}
    expected = under(vectors, "grad.")
    # the loader's own renaming carries the original gradients to our parameters
    carrier = MetaFormer(CONFIGS[name])
    state = {key: torch.zeros_like(value) for key, value in under(vectors, "state.").items()} | expected
    load_weights(carrier, state)
    largest = max(float(value.abs().max()) for value in expected.values())
    for key, value in carrier.state_dict().items():
        if key.endswith("random_matrix"):
            continue
        allowed = GRADIENT_TOLERANCE * max(float(value.abs().max()), SMALL_GRADIENT * largest)
        assert float((ours[key] - value).abs().max()) <= allowed, key


def close(ours: Tensor, expected: Tensor, what: str) -> None:
    assert ours.shape == expected.shape, what
    error = float((ours - expected).abs().max())
    assert error <= TOLERANCE * float(expected.abs().max()), f"{what}: {error}"
