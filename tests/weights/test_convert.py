"""From file to file, through every format a family has."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metaformer.backbones.metaformer import MetaFormer
from metaformer.backbones.variants import VARIANTS, family
from metaformer.errors import OutputError, UnknownName, WeightsError
from metaformer.models.build import DENSE_KINDS, DETECTOR, NetworkKind, build_network
from metaformer.weights.convert import convert
from metaformer.weights.io import read_metadata, read_state, write_state
from metaformer.weights.load import load_weights
from toys import equal_states, torchvision_state

ORIGINAL_FORMATS = {
    **dict.fromkeys(("poolformer", "metaformer"), "poolformer"),
    "cyclemlp": "cyclemlp",
    **dict.fromkeys(("convnext", "inception_next", "mambaout"), "timm"),
}
OTHER_FORMATS = {
    "poolformer": ("timm", "huggingface", "mmpretrain"),
    "poolformerv2": ("timm",),
    "convformer": ("timm",),
    "caformer": ("timm",),
}
NAMES = [name for name in VARIANTS if name.endswith(("_s12", "_s18", "_b1", "_atto", "_femto", "_plus_rw"))]
"""The smallest variants of each family, made tiny."""


def tiny(name: str) -> MetaFormer:
    torch.manual_seed(0)
    config = VARIANTS[name]
    return MetaFormer(replace(config, depths=(1,) * 4, dims=(32,) * 4, num_classes=7, image_size=(64, 64)))


@pytest.mark.parametrize("name", NAMES)
def test_both_ways_through_every_format_of_a_family(tmp_path: Path, name: str) -> None:
    model, original = tiny(name), ORIGINAL_FORMATS.get(family(name), "baselines")
    write_state(tmp_path / "0.safetensors", model.state_dict())
    chain = [original, *OTHER_FORMATS.get(family(name), ()), "metaformer"]
    for step, form in enumerate(chain, 1):
        suffix = ".safetensors" if step % 2 == 0 else ".pth.tar"
        previous = next(tmp_path.glob(f"{step - 1}.*"))
        done = convert(previous, tmp_path / f"{step}{suffix}", form)
        assert done.target_format == form and done.tensors >= len(model.state_dict())
        report = load_weights(tiny(name), done.target)
        assert report.fraction == 1.0
    back = read_state(next(tmp_path.glob(f"{len(chain)}.*"))).tensors
    assert equal_states(back, model.state_dict())


def test_cyclemlp_files_look_as_published(tmp_path: Path) -> None:
    write_state(tmp_path / "in.pth", tiny("cyclemlp_b1").state_dict())
    convert(tmp_path / "in.pth", tmp_path / "out.pth", "cyclemlp")
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(content) == ["model"]
    assert content["model"]["network.0.0.attn.sfc_w.offset"].shape == (1, 64, 1, 1)
    assert content["model"]["network.0.0.mlp.fc1.weight"].shape == (128, 32)


def test_timm_names_the_parts_of_each_family_in_its_way(tmp_path: Path) -> None:
    write_state(tmp_path / "in.safetensors", published("convnext_atto").state_dict())
    done = convert(tmp_path / "in.safetensors", tmp_path / "atto.safetensors", "timm")
    assert done.model == "convnext_atto" and done.target_format == "timm"
    state = read_state(done.target).tensors
    assert state["stages.0.blocks.0.conv_dw.weight"].shape == (40, 1, 7, 7)
    assert state["stages.0.blocks.0.mlp.fc1.weight"].shape == (160, 40, 1, 1)
    back = convert(done.target, tmp_path / "back.safetensors", "metaformer")
    assert (back.source_format, back.model) == ("timm_convnext", "convnext_atto")
    write_state(tmp_path / "in.safetensors", tiny("convnext_tiny").state_dict())
    with pytest.raises(WeightsError, match=r"no place in the format 'timm_mambaout'"):
        convert(tmp_path / "in.safetensors", tmp_path / "no.safetensors", "timm_mambaout")


def published(name: str) -> MetaFormer:
    return MetaFormer(replace(VARIANTS[name], num_classes=2))


def test_the_model_is_inferred_and_written_down(tmp_path: Path) -> None:
    write_state(tmp_path / "in.pth", published("metaformer_pppf_s12").state_dict())
    done = convert(tmp_path / "in.pth", tmp_path / "out.safetensors", "poolformer")
    assert done.model == "metaformer_pppf_s12" and "metaformer_pppf_s12" in str(done)
    assert read_metadata(done.target)["architecture"] == "metaformer_pppf_s12"


def test_twins_are_asked_about_where_it_matters(tmp_path: Path) -> None:
    write_state(tmp_path / "in.pth", published("poolformer_s12").state_dict())
    assert convert(tmp_path / "in.pth", tmp_path / "out.pth", "poolformer").model == ""
    with pytest.raises(WeightsError, match=r"poolformer_s12 or metaformer_id_s12.*name one"):
        convert(tmp_path / "in.pth", tmp_path / "no.pth", "huggingface")
    assert not (tmp_path / "no.pth").exists()
    done = convert(tmp_path / "in.pth", tmp_path / "hf.pth", "huggingface", model="poolformer_s12")
    assert done.model == "poolformer_s12"
    # transformers knows PoolFormer only, so its own file is clear
    assert convert(tmp_path / "hf.pth", tmp_path / "mm.pth", "mmpretrain").model == "poolformer_s12"
    with pytest.raises(WeightsError, match="has no metaformer_id_s12"):
        convert(tmp_path / "in.pth", tmp_path / "no.pth", "huggingface", model="metaformer_id_s12")


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    path = tmp_path / "in.pth"
    write_state(path, tiny("caformer_s18").state_dict())
    with pytest.raises(WeightsError, match=r"in\.pth: .*no place in the format 'huggingface'"):
        convert(path, tmp_path / "out.pth", "huggingface")
    with pytest.raises(UnknownName, match="baselines"):
        convert(path, tmp_path / "out.pth", "baseline")
    with pytest.raises(UnknownName, match="caformer_s18"):
        convert(path, tmp_path / "out.pth", "timm", model="caformer_s81")
    with pytest.raises(WeightsError, match="not of caformer_s18"):
        convert(path, tmp_path / "out.pth", "timm", model="caformer_s18")
    write_state(path, {"patch_embed.proj.weight": torch.ones(1), "strange": torch.ones(1)})
    with pytest.raises(WeightsError, match="strange"):
        convert(path, tmp_path / "out.pth", "timm")
    assert not (tmp_path / "out.pth").exists()


def test_the_file_read_is_not_written_over(tmp_path: Path) -> None:
    source = tmp_path / "in.pth"
    write_state(source, tiny("poolformer_s12").state_dict())
    before = source.read_bytes()
    (tmp_path / "link.pth").symlink_to(source)
    for target in (source, tmp_path / "link.pth"):
        with pytest.raises(OutputError, match="is the file to read"):
            convert(source, target, "timm")
    assert source.read_bytes() == before


@pytest.mark.parametrize(("kind", "head"), [(kind, head) for kind in DENSE_KINDS for head in kind.heads])
def test_dense_networks_both_ways(tmp_path: Path, kind: NetworkKind, head: str) -> None:
    ours, theirs = ("detector", "mmdetection") if kind is DETECTOR else ("segmenter", "mmsegmentation")
    backbone = replace(VARIANTS["poolformer_s12"], feature_norm="fresh")
    small = {"fpn_dim": 8, **({"box_fc_dim": 8} if kind is DETECTOR else {"head_dim": 8})}
    config = kind.config(kind=head, backbone=backbone, num_classes=2, **small)
    model = build_network(config)
    write_state(tmp_path / "in.safetensors", model.state_dict())
    there = convert(tmp_path / "in.safetensors", tmp_path / "there.pth", theirs, "poolformer_s12")
    assert there.model == "poolformer_s12" and there.source_format == ours
    content = torch.load(there.target, weights_only=True)
    assert list(content) == ["state_dict"] and "backbone.norm6.weight" in content["state_dict"]
    back = convert(there.target, tmp_path / "back.safetensors", ours)
    assert back.source_format == theirs
    again = build_network(config)
    assert load_weights(again, back.target).fraction == 1.0
    assert equal_states(again.state_dict(), model.state_dict())
    with pytest.raises(WeightsError, match="no place in the format 'timm'"):
        convert(there.target, tmp_path / "no.pth", "timm")
    if kind is DETECTOR:
        write_state(tmp_path / "tv.safetensors", torchvision_state(model))
        with pytest.raises(WeightsError, match=r"tv\.safetensors: .*torchvision"):
            convert(tmp_path / "tv.safetensors", tmp_path / "no.pth", "mmdetection", "poolformer_s12")
