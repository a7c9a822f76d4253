"""Golden values of mmsegmentation's Semantic FPN on PoolFormer, with weights loaded from its key names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from metaformer.backbones.config import MetaFormerConfig
from metaformer.factory import create_segmenter
from metaformer.models.segmentation.loss import SegmentationLoss
from metaformer.models.segmentation.segmenter import Segmenter
from metaformer.weights.load import load_weights

GOLDEN = Path(__file__).parent / "golden_dense"
VECTORS = load_file(GOLDEN / "semfpn_tiny.safetensors")
LOSSES: dict[str, Any] = json.loads((GOLDEN / "semfpn_tiny.losses.json").read_text())
STATE = GOLDEN / "semfpn_tiny.state.safetensors"
TINY = MetaFormerConfig(depths=(1,) * 4, dims=(8, 16, 20, 28))
SIZES = ("128x160", "97x131")
TOLERANCE, GRADIENT_TOLERANCE, SMALL_GRADIENT = 1e-5, 1e-4, 0.01
TRAIN = "loss_train_mode_dropout0_batch2_inputseed7"


def tiny(**options: Any) -> Segmenter:
    return create_segmenter(
        "semantic_fpn",
        backbone=TINY,
        num_classes=150,
        fpn_dim=32,
        head_dim=16,
        checkpoint_path=STATE,
        criterion=SegmentationLoss(reduction="all"),
        **options,
    )


def close(ours: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == expected.shape, what
    error = float((ours - expected).abs().max())
    assert error <= tolerance * float(expected.abs().max()), f"{what}: {error}"


def test_all_weights_are_loaded() -> None:
    report = load_weights(tiny(), STATE)
    assert report.format == "mmsegmentation" and report.complete and report.fraction == 1.0
    assert not report.fresh and not report.dropped and not report.adapted
    assert sum(parameter.numel() for parameter in tiny().parameters()) == LOSSES["params"]


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_features_and_logits(size: str) -> None:
    model, image = tiny().eval(), VECTORS[f"input.{size}"]
    assert model.neck is not None
    features = model.backbone(image)
    levels = model.neck(features)
    for i in range(4):
        close(features[i], VECTORS[f"backbone.{size}.{i}"], f"features {i}")
        close(levels[i], VECTORS[f"neck.{size}.{i}"], f"level {i}")
    close(model.head.features(levels), VECTORS[f"head_before_conv_seg.{size}"], "head")
    outputs, logits = model.forward_head(image), model(image)
    close(outputs, VECTORS[f"logits.{size}"], "logits")
    expected = VECTORS[f"pred.{size}"].long()
    # ties up to rounding may be decided otherwise
    best, second = logits[0].topk(2, dim=0).values
    sure = best - second > TOLERANCE * float(logits.abs().max())
    assert sure.float().mean() > 0.999
    assert torch.equal(logits[0].argmax(0)[sure], expected[sure])
    (decoded,) = model.decode(outputs, [image.shape[2:]])
    assert torch.equal(decoded, logits[0].argmax(0))
    for what, value in (("sum", logits.double().sum()), ("abssum", logits.double().abs().sum())):
        assert float(value) == pytest.approx(LOSSES[f"full_logits_{what}.{size}"], rel=1e-5)


def test_loss_and_gradients_in_evaluation_mode() -> None:
    model = tiny().eval()
    losses = model(VECTORS["input.97x131"], VECTORS["loss.label"][None])
    assert losses["loss"].item() == pytest.approx(LOSSES["loss_eval_mode"]["decode.loss_ce"], rel=TOLERANCE)
    losses["loss"].backward()
    check_gradients(model, LOSSES["loss_eval_mode_grads"])


def test_loss_gradients_and_running_statistics_in_training_mode() -> None:
    model = tiny(dropout=0.0).train()
    images = torch.randn(2, 3, 97, 131, generator=torch.Generator().manual_seed(7))
    losses = model(images, VECTORS["loss.label"].expand(2, -1, -1))
    assert losses["loss"].item() == pytest.approx(LOSSES[TRAIN]["decode.loss_ce"], rel=TOLERANCE)
    losses["loss"].backward()
    check_gradients(model, LOSSES["loss_train_mode_grads"])
    names = our_names(model)
    state = model.state_dict()
    assert len(LOSSES["running_after_train_step"]) == 21
    for key, first in LOSSES["running_after_train_step"].items():
        value = state[names[key]].flatten().double()[: len(first)]
        close(value, torch.tensor(first, dtype=torch.float64), key)


def test_loss_over_labeled_pixels_is_larger() -> None:
    """Published runs divide by all pixels; over labeled pixels alone the loss is a sixth larger."""
    model = tiny().eval()
    model.criterion = SegmentationLoss()
    label = VECTORS["loss.label"][None]
    share = float((label != 255).float().mean())
    loss = model(VECTORS["input.97x131"], label)["loss"].item()
    assert loss * share == pytest.approx(LOSSES["loss_eval_mode"]["decode.loss_ce"], rel=TOLERANCE)
    assert 0.8 < share < 0.9


def check_gradients(model: Segmenter, expected: dict[str, dict[str, Any]]) -> None:
    """Compare norm, sum and first values of each gradient; mmsegmentation freezes the stem."""
    names, parameters = our_names(model), dict(model.named_parameters())
    trained = {names[key]: key for key in expected}
    assert set(parameters) - set(trained) == {"backbone.stem.conv.weight", "backbone.stem.conv.bias"}
    largest = max(max(map(abs, figures["first"])) for figures in expected.values())
    for name, key in trained.items():
        gradient = parameters[name].grad
        assert gradient is not None, name
        figures = expected[key]
        top = max(float(gradient.abs().max()), SMALL_GRADIENT * largest)
        first = torch.tensor(figures["first"], dtype=torch.float64)
        ours = gradient.flatten().double()
        assert float((ours[: len(first)] - first).abs().max()) <= GRADIENT_TOLERANCE * top, key
        size = max(1.0, len(ours) ** 0.5)
        assert abs(float(ours.norm()) - figures["l2"]) <= GRADIENT_TOLERANCE * top * size, key
        assert abs(float(ours.sum()) - figures["sum"]) <= GRADIENT_TOLERANCE * top * size, key


def our_names(model: Segmenter) -> dict[str, str]:
    """Our name of each key of the recorded state."""
    from metaformer.weights.keymap import to_ours

    renamed = to_ours(load_file(STATE))
    assert set(renamed.state) == set(model.state_dict())
    return {key: name for name, key in renamed.origin.items()}
