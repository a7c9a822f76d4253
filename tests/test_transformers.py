"""The same numbers as transformers' PoolFormer and UperNet, both ways."""

from pathlib import Path

import pytest
import torch
import transformers

from metaformer.backbones.metaformer import MetaFormer
from metaformer.factory import create_segmenter
from metaformer.weights.card import read_config
from metaformer.weights.convert import convert
from metaformer.weights.hub import from_pretrained
from metaformer.weights.io import write_state
from metaformer.weights.keymap import from_ours, to_ours
from metaformer.weights.load import load_weights

OPTIONS = [
    {"depths": [1, 2, 1, 1], "hidden_sizes": [8, 16, 20, 28], "num_labels": 7},
    {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 12, 12, 16],
        "num_labels": 3,
        "pool_size": 5,
        "mlp_ratio": 2.0,
    },
    {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 12, 16, 20], "num_labels": 3, "use_layer_scale": False},
]


def theirs_of(options: dict[str, object]) -> torch.nn.Module:
    torch.manual_seed(0)
    model = transformers.PoolFormerForImageClassification(transformers.PoolFormerConfig(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_both_ways(options: dict[str, object]) -> None:
    theirs = theirs_of(options)
    ours = MetaFormer(read_config(theirs.config.to_dict())).eval()
    report = load_weights(ours, theirs.state_dict())
    assert report.format == "huggingface" and report.fraction == 1.0 and report.complete
    image = torch.randn(2, 3, 75, 93)
    with torch.no_grad():
        expected = theirs(image).logits
        assert (ours(image) - expected).abs().max() <= 1e-5 * expected.abs().max()
        back = theirs_of(options)
        for parameter in back.parameters():
            parameter.zero_()
        back.load_state_dict(from_ours(ours.state_dict(), "huggingface"))
        assert torch.equal(back(image).logits, expected)


def test_their_saved_directory_is_read_and_ours_by_them(tmp_path: Path) -> None:
    theirs = theirs_of(OPTIONS[0])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(image).logits
        assert (ours(image) - expected).abs().max() <= 1e-5 * expected.abs().max()
    write_state(tmp_path / "ours.safetensors", ours.state_dict())
    convert(tmp_path / "ours.safetensors", tmp_path / "theirs" / "model.safetensors", "huggingface")
    again = transformers.PoolFormerForImageClassification.from_pretrained(tmp_path / "theirs").eval()
    with torch.no_grad():
        assert torch.allclose(again(image).logits, expected, atol=1e-6)


def test_their_base_model_is_recognized() -> None:
    theirs = theirs_of(OPTIONS[0])
    renamed = to_ours(theirs.poolformer.state_dict())
    assert renamed.format == "huggingface_base" and not renamed.unknown
    whole = to_ours(theirs.state_dict()).state
    assert renamed.state.keys() == {name for name in whole if not name.startswith("head.")}


def upernet_of(backbone: str, **options: object) -> torch.nn.Module:
    """Their UperNet on a backbone of timm, every number random."""
    torch.manual_seed(0)
    below = transformers.TimmBackboneConfig(
        backbone=backbone, out_indices=(0, 1, 2, 3), use_pretrained_backbone=False
    )
    config = transformers.UperNetConfig(backbone_config=below, num_labels=7, hidden_size=16, **options)
    model = transformers.UperNetForSemanticSegmentation(config).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and "_backbone" not in name:
                value.add_(torch.randn_like(value).abs() * 0.2)
    return model


@pytest.mark.parametrize("name", ["poolformerv2_s12", "caformer_s18"])
@pytest.mark.parametrize("auxiliary", [True, False])
def test_upernet_both_ways(name: str, auxiliary: bool) -> None:
    theirs = upernet_of(name, auxiliary_in_channels=320, use_auxiliary_head=auxiliary)
    options = {"num_classes": 7, "feature_norm": "none", "head_dim": 16, "auxiliary": auxiliary}
    ours = create_segmenter("upernet", backbone=name, **options).eval()
    report = load_weights(ours, theirs.state_dict())
    assert report.format == "huggingface_upernet" and report.complete and report.fraction == 1.0
    back = from_ours(ours.state_dict(), "huggingface_upernet")
    assert back.keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        assert torch.equal(back[key], value), key
    image = torch.randn(2, 3, 97, 131)
    labels = torch.randint(0, 7, (2, 97, 131))
    labels[:, :10] = 255
    with torch.no_grad():
        expected = theirs(image, labels=labels)
        logits, losses = ours(image), ours(image, labels)
        assert (logits - expected.logits).abs().max() <= 1e-5 * expected.logits.abs().max()
        if not auxiliary:
            assert losses["loss"].item() == pytest.approx(expected.loss.item(), rel=1e-5)


def test_upernets_training_loss_is_theirs_too() -> None:
    theirs = upernet_of("poolformerv2_s12", auxiliary_in_channels=320).train()
    ours = create_segmenter(
        "upernet",
        backbone="poolformerv2_s12",
        num_classes=7,
        feature_norm="none",
        head_dim=16,
        dropout=0.0,
        auxiliary=True,
    ).train()
    load_weights(ours, theirs.state_dict())
    theirs, ours = theirs.double(), ours.double()  # a batch norm of two numbers magnifies rounding
    image, labels = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.randint(0, 7, (2, 64, 64))
    labels[0] = 255
    expected = theirs(image, labels=labels).loss
    loss = ours(image, labels)["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    loss.backward()
    pairs = (
        (theirs.decode_head.psp_modules.get_submodule("0.1.conv"), ours.head.pools[0].conv),
        (theirs.auxiliary_head.classifier, ours.auxiliary.classifier),
        (theirs.backbone._backbone.stem.conv, ours.backbone.stem.conv),
    )
    for other, mine in pairs:
        assert torch.allclose(mine.weight.grad, other.weight.grad, atol=1e-5 * other.weight.grad.abs().max())
