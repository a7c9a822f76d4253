"""The same numbers as transformers' PoolFormer, both ways."""

from pathlib import Path

import pytest
import torch
import transformers

from metaformer.backbones.skeleton import MetaFormer
from metaformer.models import convert, from_pretrained, load_weights
from metaformer.weights.hub import read_config
from metaformer.weights.io import write_state
from metaformer.weights.keymap import from_ours, to_ours

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


def test_their_base_model_is_recognised() -> None:
    theirs = theirs_of(OPTIONS[0])
    renamed = to_ours(theirs.poolformer.state_dict())
    assert renamed.format == "huggingface_base" and not renamed.unknown
    whole = to_ours(theirs.state_dict()).state
    assert renamed.state.keys() == {name for name in whole if not name.startswith("head.")}
