"""Filling models: what fits, what is adapted on request, and what is an error that helps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer, MetaFormerFeatures
from metaformer.errors import ConfigError, WeightsError
from metaformer.weights.io import write_state
from metaformer.weights.keymap import from_ours
from metaformer.weights.load import load_weights

TINY = MetaFormerConfig(depths=(1, 1, 2, 1), dims=(8, 16, 20, 28), num_classes=7, image_size=(64, 64))
GRIDDED = replace(
    TINY,
    mixers=("pooling", "pooling", "random", "spatial_fc(bias=True)"),
    pos_embed=(False, True, False, False),
)


def trained(config: MetaFormerConfig, seed: int = 0) -> MetaFormer:
    """A model whose every number is random."""
    torch.manual_seed(seed)
    model = MetaFormer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5, 0.3)
    return model


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.pth.tar"])
@pytest.mark.parametrize("form", ["poolformer", "timm", "huggingface", "mmpretrain", "metaformer"])
def test_files_of_each_format_fill_the_model(tmp_path: Path, form: str, name: str) -> None:
    source, model = trained(TINY), MetaFormer(TINY).eval()
    write_state(tmp_path / name, from_ours(source.state_dict(), form))
    report = load_weights(model, tmp_path / name)
    assert report.complete and report.fraction == 1.0 and set(report.loaded) == set(model.state_dict())
    assert same(snapshot(model), snapshot(source))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image), source(image))


def test_another_number_of_classes_is_an_error_that_says_what_to_do() -> None:
    model = MetaFormer(replace(TINY, num_classes=5))
    before = snapshot(model)
    with pytest.raises(
        WeightsError, match=r"7 classes, the model 5.*num_classes=7.*classifier='reset'"
    ) as caught:
        load_weights(model, trained(TINY).state_dict())
    assert "7×28 in the file, 5×28 here" in str(caught.value)
    assert "\n" not in str(caught.value) and same(snapshot(model), before)


@pytest.mark.parametrize("head", ["norm_pool_fc", "pool_norm_mlp"])
def test_a_classifier_is_reset_on_request(head: str) -> None:
    source, model = trained(replace(TINY, head=head)), MetaFormer(replace(TINY, head=head, num_classes=5))
    last = {f"head.fc{'.fc2' if head == 'pool_norm_mlp' else ''}.{part}" for part in ("weight", "bias")}
    before = snapshot(model)
    report = load_weights(model, source.state_dict(), classifier="reset")
    assert report.complete and set(report.fresh) == last and set(report.dropped) == last
    after, expected = snapshot(model), snapshot(source)
    assert all(torch.equal(after[name], (before if name in last else expected)[name]) for name in after)
    assert "reset, 5 classes; the file's has 7" in str(report)


def test_a_classifier_that_fits_is_kept() -> None:
    source, model = trained(TINY), MetaFormer(TINY)
    assert not load_weights(model, source.state_dict(), classifier="reset").fresh
    assert same(snapshot(model), snapshot(source))


def test_a_model_without_classifier_takes_none() -> None:
    model = MetaFormer(replace(TINY, num_classes=0))
    report = load_weights(model, trained(TINY).state_dict())
    assert report.dropped == ["head.fc.weight", "head.fc.bias"] and report.fraction == 1.0


def test_the_wrong_network_is_named_with_both_shapes_and_nothing_changes() -> None:
    source = trained(replace(TINY, depths=(2, 2, 6, 2), dims=(64, 128, 320, 512), num_classes=1000))
    model = MetaFormer(TINY)
    before = snapshot(model)
    with pytest.raises(WeightsError, match="the file looks like poolformer_s12") as caught:
        load_weights(model, source.state_dict())
    text = str(caught.value)
    assert "64×3×7×7 in the file, 8×3×7×7 here" in text and "unknown to the model" in text
    assert text.count(" in the file, ") == 10 and text.count("stages.2.blocks.5.") <= 10
    assert same(snapshot(model), before)


def test_errors_name_keys_as_the_file_has_them() -> None:
    state = from_ours(trained(TINY).state_dict(), "poolformer")
    state["network.0.0.strange"] = state.pop("network.4.1.norm1.weight")
    with pytest.raises(WeightsError) as caught:
        load_weights(MetaFormer(TINY), state)
    assert "1 missing in the file: stages.2.blocks.1.norm1.weight" in str(caught.value)
    assert "1 unknown to the model: network.0.0.strange" in str(caught.value)


def test_partial_loading_keeps_all_but_the_mixers() -> None:
    source = trained(replace(TINY, mixers="attention(head_dim=4)"))
    model = MetaFormer(replace(TINY, mixers="pooling"))
    with pytest.raises(WeightsError, match="token_mixer"):
        load_weights(model, source.state_dict())
    report = load_weights(model, source.state_dict(), strict=False)
    assert report.fraction == 1.0 and not report.missing and not report.complete
    assert all("token_mixer" in name for name in report.unexpected)
    expected = snapshot(source)
    assert all(torch.equal(value, expected[name]) for name, value in snapshot(model).items())


def test_partial_loading_with_nothing_in_common_is_an_error() -> None:
    wide = replace(TINY, dims=(4, 4, 4, 4), num_classes=3)
    with pytest.raises(WeightsError, match="does not fit"):
        load_weights(MetaFormer(TINY), {"stem.conv.weight": MetaFormer(wide).stem.conv.weight}, strict=False)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_rgb_stems_fit_other_channels(channels: int) -> None:
    source, model = trained(TINY), MetaFormer(replace(TINY, in_chans=channels)).eval()
    report = load_weights(model, source.state_dict())
    assert report.adapted == [f"stem.conv.weight: fitted from 3 input channels to {channels}"]
    gray = torch.randn(1, 1, 64, 64)
    # as many equal channels as there are give the response to three of them
    ours, theirs = model.stem(gray.expand(-1, channels, -1, -1)), source.stem(gray.expand(-1, 3, -1, -1))
    if channels in (1, 3):
        assert torch.allclose(ours, theirs, atol=1e-4)
    weight = source.stem.conv.weight.detach()
    repeated = torch.cat([weight, weight, weight], 1)[:, :channels] * 3 / channels
    expected = weight.sum(1, keepdim=True) if channels == 1 else repeated
    assert torch.allclose(model.stem.conv.weight, expected)


def test_stems_for_other_channels_do_not_become_rgb() -> None:
    with pytest.raises(WeightsError, match="8×1×7×7 in the file, 8×3×7×7 here"):
        load_weights(MetaFormer(TINY), trained(replace(TINY, in_chans=1)).state_dict())


def test_a_pyramid_from_a_classifier_has_fresh_norms() -> None:
    source, model = trained(TINY), MetaFormerFeatures(replace(TINY, feature_norm="fresh"))
    report = load_weights(model, from_ours(source.state_dict(), "poolformer"))
    assert report.dropped == ["norm.weight", "norm.bias", "head.weight", "head.bias"]
    assert report.fresh == [f"norms.{i}.{part}" for i in range(4) for part in ("weight", "bias")]
    assert all(bool((norm.weight == 1).all()) for norm in model.norms.values())


def test_a_pyramid_may_keep_the_trained_norm_at_its_last_level() -> None:
    source, model = trained(TINY), MetaFormerFeatures(replace(TINY, feature_norm="head")).eval()
    report = load_weights(model, from_ours(source.state_dict(), "mmpretrain"))
    assert torch.equal(model.norms["3"].weight, source.head.norm.weight)
    assert len(report.fresh) == 6 and report.dropped == ["head.fc.weight", "head.fc.bias"]
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model(image)[-1], source.head.norm(source.forward_features(image)))


def test_a_dense_file_fills_the_levels_that_are_asked_for() -> None:
    dense = MetaFormerFeatures(replace(TINY, feature_norm="fresh"))
    with torch.no_grad():
        for i, norm in dense.norms.items():
            norm.weight.fill_(float(i))
    state = from_ours(dense.state_dict(), "openmmlab") | {
        "neck.x": torch.ones(1),
        "decode_head.y": torch.ones(1),
    }
    model = MetaFormerFeatures(replace(TINY, feature_norm="fresh"), out_indices=(1, 3))
    report = load_weights(model, state)
    assert not report.fresh and report.fraction == 1.0
    assert [norm.weight.mean().item() for norm in model.norms.values()] == [1.0, 3.0]
    assert {"neck.x", "decode_head.y", "backbone.norm0.weight"} <= set(report.dropped)
    with pytest.raises(WeightsError, match=r"norm2\.weight"):  # trained norms are not thrown away unasked
        load_weights(MetaFormerFeatures(TINY), state)


def test_another_grid_is_named_and_resampled_on_request() -> None:
    source = trained(GRIDDED)
    larger = replace(GRIDDED, image_size=(96, 128))
    with pytest.raises(WeightsError, match=r"another grid.*12×16 positions.*image_size") as caught:
        load_weights(MetaFormer(larger), source.state_dict())
    assert "\n" not in str(caught.value)
    model = MetaFormer(larger).eval()
    report = load_weights(model, source.state_dict(), grid="interpolate")
    assert report.fraction == 1.0 and len(report.adapted) == 5
    # the same function as the small grid's with resampling around it
    at_any_size = MetaFormer(replace(GRIDDED, grid_mode="interpolate")).eval()
    load_weights(at_any_size, source.state_dict())
    x = torch.randn(2, 28, 3, 4)
    ours, expected = (net.stages[3].blocks[0].token_mixer(x) for net in (model, at_any_size))
    assert torch.allclose(ours, expected, atol=1e-4)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 96, 128)).isfinite().all()


@pytest.mark.parametrize("wrap", [lambda m: nn.DataParallel(m), lambda m: torch.compile(m, backend="eager")])
def test_wrapped_models_and_states(wrap: Callable[[nn.Module], nn.Module]) -> None:
    source, model = trained(TINY), MetaFormer(TINY)
    state = wrap(source).state_dict()
    assert next(iter(state)).startswith(("module.", "_orig_mod."))
    assert load_weights(wrap(model), state).fraction == 1.0
    assert same(snapshot(model), snapshot(source))


def test_half_precision_files_fill_float_models() -> None:
    source, model = trained(TINY), MetaFormer(TINY)
    load_weights(model, {name: value.bfloat16() for name, value in source.state_dict().items()})
    assert model.stem.conv.weight.dtype == torch.float32
    assert torch.equal(model.stem.conv.weight, source.stem.conv.weight.bfloat16().float())


def test_unknown_choices() -> None:
    state = trained(TINY).state_dict()
    with pytest.raises(ConfigError, match="'keep', 'reset', 'map_21k'"):
        load_weights(MetaFormer(TINY), state, classifier="new")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'strict', 'interpolate'"):
        load_weights(MetaFormer(TINY), state, grid="resize")  # type: ignore[arg-type]


def test_foreign_networks_are_told_by_file_and_names(tmp_path: Path) -> None:
    write_state(tmp_path / "resnet.pth", {"layer1.0.conv1.weight": torch.ones(1)})
    with pytest.raises(WeightsError, match=r"resnet\.pth.*layer1\.0\.conv1\.weight"):
        load_weights(MetaFormer(TINY), tmp_path / "resnet.pth")


def test_the_report_reads_well() -> None:
    text = str(
        load_weights(MetaFormerFeatures(replace(TINY, feature_norm="fresh")), trained(TINY).state_dict())
    )
    assert text.startswith("state dict: metaformer format, ")
    assert "8 fresh: norms.0.weight" in text and "4 left out: head.norm.weight" in text


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_numbers_of_another_kind_are_refused(dtype: torch.dtype) -> None:
    model = MetaFormer(TINY)
    before = snapshot(model)
    state = {name: value.to(dtype) if name == "head.fc.weight" else value for name, value in before.items()}
    with pytest.raises(WeightsError, match=f"head.fc.weight holds {dtype}"):
        load_weights(model, state)
    assert same(before, snapshot(model))
