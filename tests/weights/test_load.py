"""Loading of weights into networks of every kind."""

import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer, MetaFormerFeatures
from metaformer.errors import ConfigError, WeightsError
from metaformer.models.build import DENSE_KINDS, DETECTOR, SEGMENTER, build_network
from metaformer.models.detection.config import KINDS, DetectorConfig
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.weights.io import write_state
from metaformer.weights.keymap import from_ours
from metaformer.weights.load import LoadReport, load_weights
from toys import copied, equal_states, randomized, torchvision_state

TINY = MetaFormerConfig(depths=(1, 1, 2, 1), dims=(8, 16, 20, 28), num_classes=7, image_size=(64, 64))
GRIDDED = replace(
    TINY,
    mixers=("pooling", "pooling", "random", "spatial_fc(bias=True)"),
    pos_embed=(False, True, False, False),
)


FRESH = replace(TINY, feature_norm="fresh")
DETECTOR_CONFIG = DetectorConfig(backbone=FRESH, num_classes=7, fpn_dim=12, box_fc_dim=10)
DENSE: dict[str, Any] = {
    "semantic_fpn": SegmenterConfig(backbone=FRESH, num_classes=7, fpn_dim=12, head_dim=6),
    "upernet": SegmenterConfig(kind="upernet", backbone=FRESH, num_classes=7, head_dim=6, auxiliary=True),
    **{kind: replace(DETECTOR_CONFIG, kind=kind) for kind in KINDS},
}
FORMS = {SEGMENTER: ("mmsegmentation", "segmenter"), DETECTOR: ("mmdetection", "detector")}
CLASS_LAYERS = {
    "semantic_fpn": {"head.classifier"},
    "upernet": {"head.classifier", "auxiliary.classifier"},
    "retinanet": {"head.classification_head.cls_logits"},
    "faster_rcnn": {"box_predictor.cls_score", "box_predictor.bbox_pred"},
    "mask_rcnn": {"box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits"},
}
HEADS = [(head, form) for kind in DENSE_KINDS for head in kind.heads for form in FORMS[kind]]
each_head = pytest.mark.parametrize("head", DENSE)
each_file = pytest.mark.parametrize(("head", "form"), HEADS)
each_wrapper = pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])


def trained(config: Any) -> Any:
    return randomized(build_network(config))


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.pth.tar"])
@pytest.mark.parametrize("form", ["poolformer", "timm", "huggingface", "mmpretrain", "metaformer"])
def test_files_of_each_format_fill_the_model(tmp_path: Path, form: str, name: str) -> None:
    source, model = trained(TINY), MetaFormer(TINY).eval()
    write_state(tmp_path / name, from_ours(source.state_dict(), form))
    report = load_weights(model, tmp_path / name)
    assert report.complete and report.fraction == 1.0 and set(report.loaded) == set(model.state_dict())
    assert equal_states(copied(model), copied(source))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image), source(image))


@pytest.mark.parametrize("head", ["norm_pool_fc", "pool_norm_mlp"])
def test_a_classifier_of_other_classes_is_refused_or_reset(head: str) -> None:
    source, model = trained(replace(TINY, head=head)), MetaFormer(replace(TINY, head=head, num_classes=5))
    last = {f"head.fc{'.fc2' if head == 'pool_norm_mlp' else ''}.{part}" for part in ("weight", "bias")}
    before, expected = copied(model), copied(source)
    with pytest.raises(
        WeightsError, match=r"7 classes, the model 5.*num_classes=7.*classifier='reset'"
    ) as caught:
        load_weights(model, source.state_dict())
    assert "in the file, 5×" in str(caught.value) and "\n" not in str(caught.value)
    assert equal_states(copied(model), before)
    report = load_weights(model, source.state_dict(), classifier="reset")
    assert report.complete and set(report.fresh) == last and set(report.dropped) == last
    after = copied(model)
    assert all(torch.equal(after[name], (before if name in last else expected)[name]) for name in after)
    assert "reset, 5 classes; the file's has 7" in str(report)


@each_file
def test_class_layers_of_other_classes_are_refused_or_reset(head: str, form: str) -> None:
    config = DENSE[head]
    state = from_ours(trained(config).state_dict(), form)
    model = build_network(replace(config, num_classes=4))
    before = copied(model)
    with pytest.raises(WeightsError, match=r"7 classes, the model 4.*num_classes=7.*classifier='reset'"):
        load_weights(model, state)
    assert equal_states(copied(model), before)
    report = load_weights(model, state, classifier="reset")
    assert report.complete and {name.rpartition(".")[0] for name in report.fresh} == CLASS_LAYERS[head]
    after = copied(model)
    assert all(torch.equal(after[name], before[name]) for name in report.fresh)
    assert "classifier: reset, 4 classes; the file's has 7" in report.adapted
    again = load_weights(build_network(config), state, classifier="reset")
    assert not again.fresh and again.fraction == 1.0


def test_a_classifier_that_fits_is_kept() -> None:
    source, model = trained(TINY), MetaFormer(TINY)
    assert not load_weights(model, source.state_dict(), classifier="reset").fresh
    assert equal_states(copied(model), copied(source))


def test_a_model_without_classifier_takes_none() -> None:
    model = MetaFormer(replace(TINY, num_classes=0))
    report = load_weights(model, trained(TINY).state_dict())
    assert report.dropped == ["head.fc.weight", "head.fc.bias"] and report.fraction == 1.0


def test_the_wrong_network_is_named_with_both_shapes_and_nothing_changes() -> None:
    source = trained(replace(TINY, depths=(2, 2, 6, 2), dims=(64, 128, 320, 512), num_classes=1000))
    model = MetaFormer(TINY)
    before = copied(model)
    with pytest.raises(WeightsError, match="the file is of poolformer_s12") as caught:
        load_weights(model, source.state_dict())
    text = str(caught.value)
    assert "64×3×7×7 in the file, 8×3×7×7 here" in text and "unknown to the model" in text
    assert text.count(" in the file, ") == 10 and text.count("stages.2.blocks.5.") <= 10
    assert equal_states(copied(model), before)


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
    expected = copied(source)
    assert all(torch.equal(value, expected[name]) for name, value in copied(model).items())


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
    source, model = trained(TINY), MetaFormerFeatures(FRESH)
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
    dense = MetaFormerFeatures(FRESH)
    with torch.no_grad():
        for i, norm in dense.norms.items():
            norm.weight.fill_(float(i))
    state = from_ours(dense.state_dict(), "openmmlab") | {
        "neck.x": torch.ones(1),
        "decode_head.y": torch.ones(1),
    }
    model = MetaFormerFeatures(FRESH, out_indices=(1, 3))
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


@each_wrapper
@pytest.mark.parametrize("config", [TINY, DENSE["semantic_fpn"]])
def test_wrapped_models_and_states(wrap: Any, config: Any) -> None:
    source, model = trained(config), build_network(config)
    state = wrap(source).state_dict()
    assert next(iter(state)).startswith(("module.", "_orig_mod."))
    assert load_weights(wrap(model), state).fraction == 1.0
    assert equal_states(copied(model), copied(source))


class Lit(nn.Module):
    """What a training module of Lightning holds: the network, its average, a weighted loss, a teacher."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


@pytest.mark.parametrize("config", [TINY, DENSE["semantic_fpn"]])
@pytest.mark.parametrize("name", ["model", "net", "student"])
def test_lightning_checkpoints_and_averaged_models(name: str, config: Any, tmp_path: Path) -> None:
    source, other, loss = trained(config), build_network(config), nn.CrossEntropyLoss(torch.ones(3))
    wrapped = {
        "plain": Lit(**{name: source}, criterion=loss),
        "averaged": Lit(**{name: AveragedModel(source)}),
        "compiled": Lit(**{name: torch.compile(source, backend="eager")}, criterion=loss),
        "alone": AveragedModel(source),
        "parallel": nn.DataParallel(AveragedModel(source)),
    }
    if name == "model":
        wrapped["two"] = Lit(model=source, teacher=other)
    for kind, module in wrapped.items():
        lightning = {"pytorch-lightning_version": "2.5.0", "epoch": 3, "state_dict": module.state_dict()}
        torch.save(lightning, tmp_path / f"{kind}.ckpt")
        model = build_network(config)
        report = load_weights(model, tmp_path / f"{kind}.ckpt")
        assert report.fraction == 1.0 and equal_states(copied(model), copied(source)), kind
        assert ("criterion.weight" in report.dropped) == hasattr(module, "criterion"), "told, not silent"


def test_several_networks_in_a_file_are_told() -> None:
    state = Lit(student=trained(TINY), teacher=trained(TINY)).state_dict()
    with pytest.raises(WeightsError, match=r"several networks \(student, teacher\)"):
        load_weights(MetaFormer(TINY), state)


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


def test_the_report_as_text() -> None:
    text = str(load_weights(MetaFormerFeatures(FRESH), trained(TINY).state_dict()))
    assert text.startswith("state dict: metaformer format, ")
    assert "8 fresh: norms.0.weight" in text and "4 left out: head.norm.weight" in text
    report = LoadReport("timm", "x.pth", missing=[f"m{i}" for i in range(12)])
    assert report.problems() == [f"12 missing in the file: {', '.join(f'm{i}' for i in range(10))}, …"]
    assert not report.complete
    report = LoadReport("timm", "x.pth", misshaped=[("a", (2, 3), (4,)), ("b", (), (1,))])
    assert report.problems() == ["2 misshaped: a 2×3 in the file, 4 here, b a number in the file, 1 here"]
    report = LoadReport("timm", "x.pth", loaded=["a"], fraction=1.0)
    assert report.complete and str(report) == "x.pth: timm format, 1 tensors, 100.0% of the model"


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_numbers_of_another_kind_are_refused(dtype: torch.dtype) -> None:
    model = MetaFormer(TINY)
    before = copied(model)
    state = {name: value.to(dtype) if name == "head.fc.weight" else value for name, value in before.items()}
    with pytest.raises(WeightsError, match=f"head.fc.weight holds {dtype}"):
        load_weights(model, state)
    assert equal_states(before, copied(model))


class HistoryBuffer:
    """Foreign objects that mmengine keeps beside its tensors."""

    __module__ = "mmengine.logging.history_buffer"
    __qualname__ = __name__ = "HistoryBuffer"


def published(model: nn.Module, form: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as mmsegmentation or mmdetection writes one."""
    module = ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, name, ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        content = {
            "meta": {"env_info": "…", "CLASSES": ("wall",), "PALETTE": [[120, 120, 120]]},
            "message_hub": {"log": HistoryBuffer()},
            "state_dict": OrderedDict(from_ours(model.state_dict(), form)),
        }
        torch.save(content, path)
    return path


def tensors(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else [x for part in outputs for x in tensors(part)]


@each_head
def test_a_published_file_with_foreign_objects_gives_the_same_outputs(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DENSE[head]
    form = FORMS[DETECTOR if head in KINDS else SEGMENTER][0]
    source, model = build_network(config).eval(), build_network(config).eval()
    report = load_weights(model, published(source, form, tmp_path / "x.pth", monkeypatch))
    assert report.format == form and report.complete and report.fraction == 1.0
    assert not report.dropped and not report.fresh
    assert equal_states(copied(model), copied(source))
    image = torch.randn(1, 3, 70, 64)
    with torch.no_grad():
        pairs = zip(tensors(model.forward_head(image)), tensors(source.forward_head(image)), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_auxiliary_heads_may_be_on_either_side() -> None:
    plain = replace(DENSE["upernet"], auxiliary=False)
    state = from_ours(trained(DENSE["upernet"]).state_dict(), "mmsegmentation")
    report = load_weights(build_network(plain), state)
    assert report.fraction == 1.0 and {key.split(".")[0] for key in report.dropped} == {"auxiliary_head"}
    report = load_weights(build_network(DENSE["upernet"]), trained(plain).state_dict())
    assert report.complete and {name.split(".")[0] for name in report.fresh} == {"auxiliary"}


@each_head
@pytest.mark.parametrize("form", ["poolformer", "timm", "huggingface", "mmpretrain", "metaformer"])
def test_classifiers_go_under_a_head(head: str, form: str) -> None:
    source, model = trained(TINY), build_network(DENSE[head])
    before = copied(model)
    report = load_weights(model, from_ours(source.state_dict(), form))
    after = copied(model)
    assert report.complete and 0 < report.fraction < 1
    assert sorted([*report.loaded, *report.fresh]) == sorted(after)
    assert all(name.startswith("backbone.") for name in report.loaded)
    assert all(name.startswith("backbone.norms.") for name in report.fresh if name.startswith("backbone."))
    assert all(torch.equal(after[name], before[name]) for name in report.fresh)
    assert torch.equal(after["backbone.stem.conv.weight"], source.stem.conv.weight)
    assert "fresh: backbone.norms.0.weight" in str(report) and "left out" in str(report)


def test_the_trained_norm_may_stay_at_the_last_level() -> None:
    config = replace(DENSE["semantic_fpn"], backbone=replace(TINY, feature_norm="head"))
    source, model = trained(TINY), build_network(config)
    report = load_weights(model, from_ours(source.state_dict(), "mmpretrain"))
    assert torch.equal(model.backbone.norms["3"].weight, source.head.norm.weight)
    assert "backbone.norms.3.weight" in report.loaded


@each_file
def test_a_backbone_goes_under_a_head_with_its_norms_and_comes_out_again(head: str, form: str) -> None:
    source, model = randomized(MetaFormerFeatures(FRESH)), build_network(DENSE[head])
    report = load_weights(model, source.state_dict())
    assert not any(name.startswith("backbone.") for name in report.fresh)
    assert equal_states(copied(model.backbone), copied(source))
    state = from_ours(model.state_dict(), form)
    alone = MetaFormerFeatures(FRESH)
    report = load_weights(alone, state)
    assert report.fraction == 1.0 and not report.fresh and equal_states(copied(alone), copied(source))
    assert len(report.dropped) == len(model.state_dict()) - len(alone.state_dict())
    partly = load_weights(MetaFormer(TINY), state, strict=False)
    assert partly.missing == [f"head.{part}.{x}" for part in ("norm", "fc") for x in ("weight", "bias")]
    other = build_network(DENSE["semantic_fpn"])
    load_weights(other.backbone, state)
    assert torch.equal(other.backbone.stem.conv.weight, source.stem.conv.weight)


def test_a_mismatch_lists_missing_unknown_and_misshaped_with_both_shapes() -> None:
    config = DENSE["semantic_fpn"]
    state = from_ours(trained(config).state_dict(), "mmsegmentation")
    del state["neck.fpn_convs.0.conv.bias"]
    state["decode_head.extra.weight"] = torch.ones(1)
    state["backbone.network.0.9.extra"] = torch.ones(1)
    model = build_network(replace(config, head_dim=10))
    before = copied(model)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, state)
    text = str(caught.value)
    assert "1 missing in the file: neck.outputs.0.bias" in text
    assert "2 unknown to the model: decode_head.extra.weight, backbone.network.0.9.extra" in text
    assert "head.scales.0.0.conv.weight 6×12×3×3 in the file, 10×12×3×3 here" in text
    assert equal_states(copied(model), before)
    report = load_weights(model, state, strict=False)
    assert torch.equal(model.neck.laterals[0].weight, state["neck.lateral_convs.0.conv.weight"])
    assert report.missing == ["neck.outputs.0.bias"]


def test_a_mismatch_of_the_backbone_has_its_name_in_the_model() -> None:
    wide = replace(TINY, dims=(8, 16, 20, 32))
    report = load_weights(build_network(DENSE["upernet"]), MetaFormer(wide).state_dict(), strict=False)
    assert ("backbone.stages.3.downsample.conv.weight", (32, 20, 3, 3), (28, 20, 3, 3)) in report.misshaped
    assert all(name.startswith("backbone.") for name in report.loaded)


def test_stems_and_grids_of_backbones_are_adapted() -> None:
    config = DENSE["semantic_fpn"]
    gridded = replace(TINY, mixers=("pooling",) * 3 + ("spatial_fc",))
    larger = replace(gridded, image_size=(96, 96), grid_mode="interpolate")
    for source in (build_network(config), MetaFormer(TINY)):
        model = build_network(replace(config, backbone=replace(FRESH, in_chans=4)))
        report = load_weights(model, source.state_dict())
        assert any("stem.conv.weight: fitted from 3 input channels to 4" in note for note in report.adapted)
    for source in (build_network(replace(config, backbone=gridded)), MetaFormer(gridded)):
        model = build_network(replace(config, backbone=larger))
        with pytest.raises(WeightsError, match="another grid"):
            load_weights(model, source.state_dict())
        report = load_weights(model, source.state_dict(), grid="interpolate")
        assert any("resampled" in note for note in report.adapted)


def test_the_norm_that_retinanet_does_not_use_may_be_missing() -> None:
    model = build_network(DENSE["retinanet"])
    state = from_ours(trained(DENSE["retinanet"]).state_dict(), "mmdetection")
    unused = {name: state.pop(name) for name in ("backbone.norm0.weight", "backbone.norm0.bias")}
    report = load_weights(model, state)
    assert report.complete and report.fresh == ["backbone.norms.0.weight", "backbone.norms.0.bias"]
    with pytest.raises(WeightsError, match=r"missing in the file: backbone\.norms\.1\.weight"):
        load_weights(model, {k: v for k, v in state.items() if k != "backbone.norm2.weight"} | unused)


def test_detectors_of_another_kind_load_in_part() -> None:
    state, model = trained(DENSE["faster_rcnn"]).state_dict(), build_network(DENSE["mask_rcnn"])
    with pytest.raises(WeightsError, match=r"missing in the file: mask_head\.0\.0\.weight"):
        load_weights(model, state)
    report = load_weights(model, state, strict=False)
    assert {name.split(".")[0] for name in report.missing} == {"mask_head", "mask_predictor"}
    assert torch.equal(model.get_submodule("box_head.fc6").weight, state["box_head.fc6.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_torchvisions_arithmetic_is_refused_but_for_its_backbone(kind: str) -> None:
    model = build_network(DENSE[kind])
    theirs, before = torchvision_state(model), copied(model)
    for strict in (True, False):
        with pytest.raises(WeightsError, match=r"torchvision.*backbone_checkpoint"):
            load_weights(model, theirs, strict)
    assert equal_states(copied(model), before)
    assert load_weights(model.backbone, theirs).complete
