"""Renaming between the formats, on the originals' own states."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from metaformer.backbones.metaformer import MetaFormer
from metaformer.errors import UnknownName, WeightsError
from metaformer.factory import model_config
from metaformer.weights.formats import FORMATS
from metaformer.weights.keymap import from_ours, recognize, to_ours

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.safetensors"))
ORIGINAL = {
    "poolformer": "poolformer",
    "poolformer_pool5_layernorm_nols": "poolformer",
    "metaformer_ppaf": "poolformer",
    "cyclemlp": "cyclemlp",
}


def state_of(path: Path) -> dict[str, Tensor]:
    vectors = load_file(path)
    return {name.removeprefix("state."): v for name, v in vectors.items() if name.startswith("state.")}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[k].shape == right[k].shape and torch.equal(left[k], right[k]) for k in left
    )


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_originals_come_back_as_they_were(path: Path) -> None:
    state = state_of(path)
    renamed = to_ours(state)
    assert renamed.format == ORIGINAL.get(path.stem, "baselines") and not renamed.unknown
    assert equal(from_ours(renamed.state, renamed.format), state)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_either_holds_all_or_refuses(path: Path, name: str) -> None:
    ours = to_ours(state_of(path)).state
    if name == "huggingface_base":
        ours = {key: value for key, value in ours.items() if not key.startswith("head.")}
    try:
        theirs = from_ours(ours, name)
    except WeightsError as error:
        assert "no place" in str(error)
        return
    back = to_ours(theirs, name)
    assert equal(back.state, ours) and not back.unknown
    assert recognize(theirs) in (name, "timm")


def test_poolformer_fits_all_its_formats() -> None:
    ours = to_ours(state_of(next(path for path in GOLDEN if path.stem == "poolformer"))).state
    for name in ("poolformer", "huggingface", "mmpretrain", "timm", "metaformer"):
        assert equal(to_ours(from_ours(ours, name)).state, ours)


def test_mmpretrain_keeps_the_final_norm_as_norm6() -> None:
    ours = to_ours(state_of(next(path for path in GOLDEN if path.stem == "poolformer"))).state
    theirs = from_ours(ours, "mmpretrain")
    assert torch.equal(theirs["backbone.norm6.weight"], ours["head.norm.weight"])
    assert {key.split(".")[0] for key in theirs} == {"backbone", "head"}


def test_dense_files_keep_a_norm_for_each_level() -> None:
    state = state_of(next(path for path in GOLDEN if path.stem == "poolformer"))
    dense = {f"backbone.{k}": v for k, v in state.items() if not k.startswith(("norm", "head"))}
    dense |= {f"backbone.norm{i}.weight": torch.full((2,), float(i)) for i in (0, 2, 4, 6)}
    dense |= {"neck.fpn_convs.0.conv.weight": torch.ones(1), "decode_head.conv_seg.bias": torch.ones(1)}
    renamed = to_ours(dense)
    assert renamed.format == "openmmlab" and not renamed.unknown
    assert [float(renamed.state[f"norms.{i}.weight"][0]) for i in range(4)] == [0, 2, 4, 6]
    assert renamed.ignored == ["neck.fpn_convs.0.conv.weight", "decode_head.conv_seg.bias"]


def test_position_embeddings_shift_the_original_indices() -> None:
    state = {
        "patch_embed.proj.weight": torch.ones(1),
        "network.0.0.norm1.weight": torch.full((1,), 0.0),
        "network.1.proj.weight": torch.ones(1),
        "network.2.pos_embed": torch.ones(1),
        "network.3.0.norm1.weight": torch.full((1,), 1.0),
        "network.4.0.norm1.weight": torch.full((1,), 2.0),  # no downsampling between stages 1 and 2
        "network.5.proj.weight": torch.ones(1),
        "network.6.0.norm1.weight": torch.full((1,), 3.0),
    }
    ours = to_ours(state).state
    assert [float(ours[f"stages.{i}.blocks.0.norm1.weight"]) for i in range(4)] == [0, 1, 2, 3]
    assert {"stages.1.pos_embed.weight", "stages.3.downsample.conv.weight"} <= set(ours)
    assert equal(from_ours(ours, "poolformer"), state)


def test_offsets_are_made_anew_for_other_kernels() -> None:
    product = torch.ones(7, 7, 1, 1)
    ours = {f"stages.0.blocks.0.token_mixer.{part}.weight": product for part in ("sfc_h", "mlp_c")}
    ours["stem.conv.weight"] = product
    offset = from_ours(ours, "cyclemlp", kernel=5)["network.0.0.attn.sfc_h.offset"]
    assert offset.shape == (1, 14, 1, 1)
    assert offset.flatten()[1::2].tolist() == [0, 1, 2, -2, -1, 0, 1]
    assert not offset.flatten()[::2].any()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappings_are_taken_off(prefix: str) -> None:
    state = state_of(GOLDEN[0])
    assert equal(to_ours({prefix + key: value for key, value in state.items()}).state, to_ours(state).state)


def test_our_own_names_stay() -> None:
    state = MetaFormer(model_config("metaformer_ppaa_s12", dims=(32,) * 4, depths=(1,) * 4)).state_dict()
    renamed = to_ours(state)
    assert renamed.format == "metaformer" and equal(renamed.state, state)


def test_unknown_keys_and_formats() -> None:
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight"):
        to_ours({"layer1.0.conv1.weight": torch.ones(1)})
    with pytest.raises(UnknownName, match="huggingface"):
        from_ours({}, "huggingfaces")
    stem, norm = {"patch_embed.proj.weight": torch.ones(1)}, torch.ones(1)
    with pytest.raises(WeightsError, match=r"both mean stages\.0\.blocks\.0\.norm1\.weight"):
        to_ours(stem | {"network.0.0.norm1.weight": norm, "network.00.0.norm1.weight": norm})
