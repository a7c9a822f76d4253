"""Files of segmentation networks, detectors, backbones and classifiers in each other."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer, MetaFormerFeatures
from metaformer.errors import WeightsError
from metaformer.models.detection.build import build_detector
from metaformer.models.detection.config import KINDS, DetectorConfig
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.weights.keymap import from_ours
from metaformer.weights.load import load_weights
from toys import torchvision_state

TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28), num_classes=5, feature_norm="fresh")
FPN = SegmenterConfig(backbone=TINY, num_classes=7, fpn_dim=12, head_dim=6)
UPERNET = replace(FPN, kind="upernet", auxiliary=True)
DETECTOR = DetectorConfig(backbone=TINY, num_classes=7, fpn_dim=12, box_fc_dim=10)
CLASS_LAYERS = {
    "retinanet": {"head.classification_head.cls_logits"},
    "faster_rcnn": {"box_predictor.cls_score", "box_predictor.bbox_pred"},
    "mask_rcnn": {
        "box_predictor.cls_score",
        "box_predictor.bbox_pred",
        "mask_predictor.mask_fcn_logits",
    },
}


def trained(model: nn.Module, seed: int = 0) -> Any:
    """A model whose every number is random."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value.normal_(0.5, 0.3).abs_()
    return model.eval()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class HistoryBuffer:
    """Foreign objects that mmengine keeps beside its tensors."""

    __module__ = "mmengine.logging.history_buffer"
    __qualname__ = __name__ = "HistoryBuffer"


def published(model: nn.Module, form: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as mmsegmentation or mmdetection writes one."""
    import sys
    from types import ModuleType

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


@pytest.mark.parametrize("config", [FPN, UPERNET], ids=lambda config: config.kind)
def test_a_file_with_foreign_objects_gives_the_same_logits(
    config: SegmenterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, model = trained(Segmenter(config)), Segmenter(config).eval()
    file = published(source, "mmsegmentation", tmp_path / "fpn.pth", monkeypatch)
    report = load_weights(model, file)
    assert report.format == "mmsegmentation" and report.complete and report.fraction == 1.0
    assert same(snapshot(model), snapshot(source))
    image = torch.randn(1, 3, 70, 64)
    with torch.no_grad():
        assert torch.equal(model(image), source(image))


def test_auxiliary_heads_may_be_on_either_side() -> None:
    plain = replace(UPERNET, auxiliary=False)
    state = from_ours(trained(Segmenter(UPERNET)).state_dict(), "mmsegmentation")
    report = load_weights(Segmenter(plain), state)
    assert report.fraction == 1.0 and {key.split(".")[0] for key in report.dropped} == {"auxiliary_head"}
    model = Segmenter(UPERNET)
    report = load_weights(model, trained(Segmenter(plain)).state_dict())
    assert report.complete and {name.split(".")[0] for name in report.fresh} == {"auxiliary"}


@pytest.mark.parametrize("form", ["poolformer", "timm", "huggingface", "mmpretrain", "metaformer"])
def test_classifiers_go_under_a_segmenter(form: str) -> None:
    source, model = trained(MetaFormer(TINY)), Segmenter(FPN)
    before = snapshot(model)
    report = load_weights(model, from_ours(source.state_dict(), form))
    after = snapshot(model)
    assert report.complete and 0 < report.fraction < 1
    assert {name.split(".")[0] for name in report.fresh} == {"backbone", "neck", "head"}
    assert sorted([*report.loaded, *report.fresh]) == sorted(after)
    assert all(name.startswith("backbone.norms.") for name in report.fresh if name.startswith("backbone."))
    assert all(torch.equal(after[name], before[name]) for name in report.fresh)
    assert torch.equal(after["backbone.stem.conv.weight"], source.stem.conv.weight)
    assert "fresh: backbone.norms.0.weight" in str(report) and "left out" in str(report)


def test_the_trained_norm_may_stay_at_the_last_level() -> None:
    config = replace(FPN, backbone=replace(TINY, feature_norm="head"))
    source, model = trained(MetaFormer(TINY)), Segmenter(config)
    report = load_weights(model, from_ours(source.state_dict(), "mmpretrain"))
    assert torch.equal(model.backbone.norms["3"].weight, source.head.norm.weight)
    assert "backbone.norms.3.weight" in report.loaded


def test_pyramids_go_under_a_segmenter_with_their_norms() -> None:
    source, model = trained(MetaFormerFeatures(TINY)), Segmenter(FPN)
    report = load_weights(model, source.state_dict())
    assert {name.split(".")[0] for name in report.fresh} == {"neck", "head"}
    assert same(snapshot(model.backbone), snapshot(source))


@pytest.mark.parametrize("form", ["mmsegmentation", "segmenter"])
def test_a_segmenters_file_gives_its_backbone(form: str) -> None:
    source, model = trained(Segmenter(FPN)), MetaFormerFeatures(TINY)
    report = load_weights(model, from_ours(source.state_dict(), form))
    assert report.fraction == 1.0 and same(snapshot(model), snapshot(source.backbone))
    assert len(report.dropped) == len(source.state_dict()) - len(model.state_dict())
    classifier = MetaFormer(TINY)
    partly = load_weights(classifier, from_ours(source.state_dict(), form), strict=False)
    assert partly.missing == [f"head.{part}.{x}" for part in ("norm", "fc") for x in ("weight", "bias")]


def test_other_classes_are_an_error_that_says_what_to_do() -> None:
    state = from_ours(trained(Segmenter(UPERNET)).state_dict(), "mmsegmentation")
    model = Segmenter(replace(UPERNET, num_classes=4))
    before = snapshot(model)
    with pytest.raises(
        WeightsError, match=r"7 classes, the model 4.*num_classes=7.*classifier='reset'"
    ) as no:
        load_weights(model, state)
    assert "head.classifier.weight 7×6×1×1 in the file, 4×6×1×1 here" in str(no.value)
    assert same(snapshot(model), before)
    report = load_weights(model, state, classifier="reset")
    last = {f"{head}.classifier.{part}" for head in ("head", "auxiliary") for part in ("weight", "bias")}
    assert report.complete and set(report.fresh) == last
    assert torch.equal(snapshot(model)["head.classifier.weight"], before["head.classifier.weight"])


def test_a_misfit_lists_missing_unknown_and_misshaped_with_both_shapes() -> None:
    state = from_ours(trained(Segmenter(FPN)).state_dict(), "mmsegmentation")
    del state["neck.fpn_convs.0.conv.bias"]
    state["decode_head.extra.weight"] = torch.ones(1)
    state["backbone.network.0.9.extra"] = torch.ones(1)
    model = Segmenter(replace(FPN, head_dim=10))
    before = snapshot(model)
    with pytest.raises(WeightsError) as caught:
        load_weights(model, state)
    text = str(caught.value)
    assert "1 missing in the file: neck.outputs.0.bias" in text
    assert "2 unknown to the model: decode_head.extra.weight, backbone.network.0.9.extra" in text
    assert "head.scales.0.0.conv.weight 6×12×3×3 in the file, 10×12×3×3 here" in text
    assert same(snapshot(model), before)
    report = load_weights(model, state, strict=False)
    assert torch.equal(model.neck.laterals[0].weight, state["neck.lateral_convs.0.conv.weight"])  # type: ignore[union-attr]
    assert report.missing == ["neck.outputs.0.bias"]


def test_a_misfit_of_the_backbone_names_it_as_it_is_called_in_the_model() -> None:
    wide = replace(TINY, dims=(8, 16, 20, 32))
    model = Segmenter(FPN)
    report = load_weights(model, MetaFormer(wide).state_dict(), strict=False)
    assert ("backbone.stages.3.downsample.conv.weight", (32, 20, 3, 3), (28, 20, 3, 3)) in report.misshaped
    assert all(name.startswith("backbone.") for name in report.loaded)


def test_other_input_channels() -> None:
    config = replace(FPN, backbone=replace(TINY, in_chans=4))
    for source in (Segmenter(FPN), MetaFormer(TINY)):
        report = load_weights(Segmenter(config), source.state_dict())
        assert any("stem.conv.weight: fitted from 3 input channels to 4" in note for note in report.adapted)


def test_other_grids_are_resampled_on_request() -> None:
    gridded = replace(TINY, mixers=("pooling",) * 3 + ("spatial_fc",), image_size=(64, 64))
    config = replace(FPN, backbone=replace(gridded, image_size=(96, 96), grid_mode="interpolate"))
    for source in (Segmenter(replace(FPN, backbone=gridded)), MetaFormer(gridded)):
        with pytest.raises(WeightsError, match="another grid"):
            load_weights(Segmenter(config), source.state_dict())
        report = load_weights(Segmenter(config), source.state_dict(), grid="interpolate")
        assert any("resampled" in note for note in report.adapted)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrapped_models_and_states(wrap: Any) -> None:
    source, model = trained(Segmenter(FPN)), Segmenter(FPN)
    assert load_weights(wrap(model), wrap(source).state_dict()).fraction == 1.0
    assert same(snapshot(model), snapshot(source))


@pytest.mark.parametrize("kind", KINDS)
def test_a_detectors_file_with_foreign_objects_gives_the_same_results(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(DETECTOR, kind=kind, score_threshold=0.1)
    torch.manual_seed(0)
    source, model = build_detector(config).eval(), build_detector(config).eval()
    report = load_weights(model, published(source, "mmdetection", tmp_path / "x.pth", monkeypatch))
    assert report.format == "mmdetection" and report.complete and report.fraction == 1.0
    assert not report.dropped and not report.fresh
    assert same(snapshot(model), snapshot(source))
    image = torch.randn(1, 3, 70, 64)
    with torch.no_grad():
        for ours, theirs in zip(model.forward_head(image), source.forward_head(image), strict=True):
            pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
            assert all(torch.equal(left, right) for left, right in pairs)


def test_the_norm_that_retinanet_does_not_use_may_be_missing() -> None:
    source, model = trained(build_detector(DETECTOR)), build_detector(DETECTOR)
    state = from_ours(source.state_dict(), "mmdetection")
    unused = {name: state.pop(name) for name in ("backbone.norm0.weight", "backbone.norm0.bias")}
    report = load_weights(model, state)
    assert report.complete and report.fresh == ["backbone.norms.0.weight", "backbone.norms.0.bias"]
    with pytest.raises(WeightsError, match=r"missing in the file: backbone\.norms\.1\.weight"):
        load_weights(model, {k: v for k, v in state.items() if k != "backbone.norm2.weight"} | unused)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["poolformer", "mmpretrain", "metaformer"])
def test_classifiers_go_under_a_detector(kind: str, form: str) -> None:
    source, model = trained(MetaFormer(TINY)), build_detector(replace(DETECTOR, kind=kind))
    before = snapshot(model)
    report = load_weights(model, from_ours(source.state_dict(), form))
    after = snapshot(model)
    assert report.complete and sorted([*report.loaded, *report.fresh]) == sorted(after)
    assert all(name.startswith("backbone.") for name in report.loaded)
    assert all(name.startswith("backbone.norms.") for name in report.fresh if name.startswith("backbone."))
    assert all(torch.equal(after[name], before[name]) for name in report.fresh)
    assert torch.equal(after["backbone.stem.conv.weight"], source.stem.conv.weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["mmdetection", "detector"])
def test_a_detectors_file_gives_its_backbone(kind: str, form: str) -> None:
    source = trained(build_detector(replace(DETECTOR, kind=kind)))
    state, model = from_ours(source.state_dict(), form), MetaFormerFeatures(TINY)
    report = load_weights(model, state)
    assert torch.equal(model.norms["3"].weight, source.backbone.norms["3"].weight)
    assert report.complete and not report.fresh
    segmenter = Segmenter(FPN)
    load_weights(segmenter.backbone, state)
    assert torch.equal(segmenter.backbone.get_submodule("stem.conv").weight, model.stem.conv.weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["mmdetection", "detector"])
def test_other_classes_of_objects_are_an_error_that_says_what_to_do(kind: str, form: str) -> None:
    config = replace(DETECTOR, kind=kind)
    state = from_ours(trained(build_detector(config)).state_dict(), form)
    model = build_detector(replace(config, num_classes=4))
    before = snapshot(model)
    with pytest.raises(WeightsError, match=r"7 classes, the model 4.*num_classes=7.*classifier='reset'"):
        load_weights(model, state)
    assert same(snapshot(model), before)
    report = load_weights(model, state, classifier="reset")
    assert report.complete and {name.rpartition(".")[0] for name in report.fresh} == CLASS_LAYERS[kind]
    after = snapshot(model)
    assert all(torch.equal(after[name], before[name]) for name in report.fresh)
    assert "classifier: reset, 4 classes; the file's has 7" in report.adapted
    again = load_weights(build_detector(config), state, classifier="reset")
    assert not again.fresh and again.fraction == 1.0


def test_detectors_of_another_kind_load_in_part() -> None:
    state = trained(build_detector(replace(DETECTOR, kind="faster_rcnn"))).state_dict()
    model = build_detector(replace(DETECTOR, kind="mask_rcnn"))
    with pytest.raises(WeightsError, match=r"missing in the file: mask_head\.0\.0\.weight"):
        load_weights(model, state)
    report = load_weights(model, state, strict=False)
    assert {name.split(".")[0] for name in report.missing} == {"mask_head", "mask_predictor"}
    assert torch.equal(model.get_submodule("box_head.fc6").weight, state["box_head.fc6.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_torchvisions_arithmetic_is_refused_but_for_its_backbone(kind: str) -> None:
    model = build_detector(replace(DETECTOR, kind=kind))
    theirs, before = torchvision_state(model), snapshot(model)
    for strict in (True, False):
        with pytest.raises(WeightsError, match=r"torchvision.*backbone_checkpoint"):
            load_weights(model, theirs, strict)
    assert same(snapshot(model), before)
    assert load_weights(model.backbone, theirs).complete
