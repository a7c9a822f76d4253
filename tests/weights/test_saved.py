"""Directories that bring their network: runs, checkpoints, and what `save_pretrained` wrote."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import metaformer
from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.metaformer import MetaFormer
from metaformer.bench.run import BenchConfig, bench
from metaformer.checkpoint.checkpoint import write_checkpoint
from metaformer.cli import main
from metaformer.errors import ConfigError, DataError, WeightsError
from metaformer.factory import create_network
from metaformer.inference.evaluate import evaluate
from metaformer.inference.model import load_model
from metaformer.inference.predictor import Predictor
from metaformer.weights.convert import convert
from metaformer.weights.io import read_state
from toys import TINY, Configure, equal_states


def _is(model: nn.Module, run: Path) -> bool:
    return equal_states(model.state_dict(), load_model(run).model.state_dict())


@pytest.fixture
def places(classify_run: Path, tmp_path: Path) -> list[Path]:
    """The same network as a run, its best and last checkpoint, and saved alone."""
    metaformer.save_pretrained(metaformer.from_pretrained(classify_run / "best"), tmp_path / "alone")
    return [classify_run, classify_run / "best", classify_run / "checkpoints" / "step_4", tmp_path / "alone"]


def test_a_directory_is_a_network_wherever_one_is_named(classify_run: Path, places: list[Path]) -> None:
    for place in places:
        for model in (
            metaformer.from_pretrained(place),
            metaformer.create_model(str(place)),
            create_network(str(place)),
            metaformer.create_model("poolformer_n", checkpoint_path=place),
        ):
            assert _is(model, classify_run), place
            assert tuple(model.pretrained_cfg["label_names"]) == ("ant", "bee", "cat")
            assert model.pretrained_cfg["crop_pct"] == 0.75
        other = metaformer.create_model(str(place), num_classes=7)
        assert other.num_classes == 7 and "label_names" not in other.pretrained_cfg
        assert not other.config.drop_path_rate
        features = metaformer.create_model("poolformer_n", checkpoint_path=place, features_only=True)
        assert features.feature_info.channels() == TINY["dims"]
        blank = metaformer.create_model(str(place), checkpoint_path=place, mixers="identity")
        assert metaformer.load_weights(blank, place).complete


def test_a_file_in_a_directory_brings_its_network(places: list[Path]) -> None:
    model = metaformer.create_model("poolformer_n", checkpoint_path=places[3] / "model.safetensors")
    assert model.num_classes == 3


def test_weights_of_a_directory_are_loaded_and_converted(
    classify_run: Path, places: list[Path], tmp_path: Path
) -> None:
    for i, place in enumerate(places):
        model = MetaFormer(metaformer.from_pretrained(place).config)
        metaformer.load_weights(model, place)
        assert _is(model, classify_run)
        out = tmp_path / f"{i}.safetensors"
        convert(place, out, "metaformer")
        assert equal_states(read_state(out).tensors, model.state_dict())


def test_dense_networks_come_from_directories(
    untrained: dict[str, Path], detect_run: Path, classify_run: Path
) -> None:
    for task, create, kind in (
        ("segment", metaformer.create_segmenter, "semantic_fpn"),
        ("detect", metaformer.create_detector, "mask_rcnn"),
    ):
        place = untrained[task]
        whole = metaformer.from_pretrained(place)
        again = [
            create(str(place)),
            create(kind, checkpoint_path=place),
            create(f"{kind}_poolformer_n", checkpoint_path=place),
            create_network(str(place)),
        ]
        assert all(_is(model, place) and model.config == whole.config for model in again)
        assert all(tuple(model.pretrained_cfg["palette"]) for model in again)
        other = create(str(place), num_classes=3)
        assert other.num_classes == 3 and other.config.fpn_dim == whole.config.fpn_dim
        on_backbones = [
            create(kind, str(classify_run), fpn_dim=8),
            create(kind, checkpoint_path=classify_run, fpn_dim=8),
            create(kind, backbone_checkpoint=classify_run, fpn_dim=8),
            create(kind, "poolformer_n", backbone_checkpoint=classify_run, fpn_dim=8),
        ]
        best = load_model(classify_run).model
        for model in on_backbones:
            assert torch.equal(model.backbone.stem.conv.weight, best.stem.conv.weight)
    backbone = metaformer.create_model(str(detect_run), features_only=True)
    assert torch.equal(backbone.stem.conv.weight, load_model(detect_run).model.backbone.stem.conv.weight)
    with pytest.raises(ConfigError, match=r"no segmenter"):
        metaformer.create_segmenter(str(detect_run))


def test_another_network_is_refused_in_one_line(classify_run: Path, detect_run: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds poolformer_n, not caformer_s18") as error:
        metaformer.create_model("caformer_s18", checkpoint_path=classify_run)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"holds mask_rcnn_poolformer_n, not caformer_s18"):
        metaformer.create_detector("mask_rcnn", "caformer_s18", checkpoint_path=detect_run)


def test_an_unnamed_network_is_nearest_to_a_variant(tmp_path: Path) -> None:
    own = MetaFormer(MetaFormerConfig(depths=(1,), dims=(8,), mlp_ratios=(4,), mixers=("identity",),
                                      layer_scale=(None,), res_scale=(None,), pos_embed=(False,),
                                      downsamples=(), num_classes=2))  # fmt: skip
    metaformer.save_pretrained(own, tmp_path)
    model = metaformer.create_model(str(tmp_path))
    assert model.config == own.config and equal_states(model.state_dict(), own.state_dict())


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "config.json").write_text(json.dumps({"task": "classify", "model": {"name": "x"}}))
    for load in (
        metaformer.from_pretrained,
        metaformer.create_model,
        lambda path: metaformer.create_model("poolformer_n", checkpoint_path=path),
    ):
        with pytest.raises(WeightsError, match="no checkpoint yet"):
            load(str(tmp_path))


def test_weights_in_parts_are_refused(tmp_path: Path, untrained: dict[str, Path]) -> None:
    state = json.loads((untrained["classify"] / "state.json").read_text())
    write_checkpoint(tmp_path / "step_1", {}, {"card": state["card"], "config": state["config"]})
    (tmp_path / "step_1" / "model").mkdir()
    with pytest.raises(WeightsError, match="in parts"):
        metaformer.from_pretrained(tmp_path / "step_1")


@pytest.mark.parametrize(
    "given", ["--model.checkpoint RUN", "--model.checkpoint RUN/best", "--model.name RUN"]
)
def test_a_run_starts_from_another(
    given: str, classify_run: Path, pets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = given.replace("RUN", str(classify_run)).split()
    own = (
        f"train finetune --data.root {pets} --out {tmp_path / 'run'} --data.image_size 32 --runtime.threads 1"
    )
    short = (
        "--data.workers 0 --data.batch_size 6 --schedule.steps 1 --schedule.warmup_steps 0 --optim.lr 1e-6"
    )
    assert main([*own.split(), *short.split(), *options]) == 0
    model = load_model(tmp_path / "run")
    assert model.name == "poolformer_n" and list(model.model.config.dims) == TINY["dims"]
    best = load_model(classify_run).model
    assert torch.allclose(model.model.stem.conv.weight, best.stem.conv.weight, atol=1e-4)
    assert f"network of {options[1]}: poolformer_n" in capfd.readouterr().err


def test_dense_runs_start_from_runs(
    detect_run: Path, classify_run: Path, configure_detect: Configure, tmp_path: Path
) -> None:
    short = {"schedule": {"steps": 1}, "evaluate": {"every_steps": 1}, "optim": {"lr": 1e-6}}
    for place, head in ((detect_run, True), (classify_run, False)):
        config = configure_detect(
            model={"name": "poolformer_s12", "overrides": {}, "checkpoint": str(place)},
            detect={"fpn_dim": 16, "head": "retinanet"} if head else {},
            **short,
        )
        from metaformer.training.train import train

        run = train(config, tmp_path / place.name / str(head)).run
        loaded, start = load_model(run), load_model(place)
        assert loaded.name == f"{'mask_rcnn' if head else loaded.model.config.kind}_poolformer_n"
        if head:
            assert loaded.model.config.fpn_dim == start.model.config.fpn_dim
            name = "neck.laterals.0.weight"
            ours, theirs = (one.model.state_dict()[name] for one in (loaded, start))
            assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_network_that_is_named_must_be_the_checkpoints(
    classify_run: Path, configure: Configure, tmp_path: Path
) -> None:
    from metaformer.training.train import train

    config = configure(model={"name": "caformer_s18", "overrides": {}, "checkpoint": str(classify_run)})
    with pytest.raises(ConfigError, match="holds poolformer_n, not caformer_s18"):
        train(config, tmp_path / "run")


def test_bench_takes_a_run(classify_run: Path) -> None:
    report = bench([str(classify_run)], BenchConfig(speed=False))
    assert report.rows[0].counts.params == sum(p.numel() for p in load_model(classify_run).model.parameters())


@pytest.fixture
def transformers_directory(tmp_path: Path) -> Path:
    """A network as transformers has it: classes in another order, with their names."""
    folder = tmp_path / "hf"
    model = metaformer.create_model("poolformer_n", num_classes=3, head_dropout=0.0)
    config = model.config
    assert config.act == "gelu"
    metaformer.save_pretrained(model, folder)
    card = {
        "model_type": "poolformer",
        "depths": list(config.depths),
        "hidden_sizes": list(config.dims),
        "mlp_ratio": config.mlp_ratios[0],
        "id2label": {"0": "cat", "1": "ant", "2": "bee"},
    }
    (folder / "config.json").write_text(json.dumps(card))
    return folder


def test_names_in_a_directory_are_the_classes(
    transformers_directory: Path, pets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = transformers_directory
    assert load_model(place).classes == ("cat", "ant", "bee")
    (result,) = Predictor(place, image_size=32)(pets / "val" / "ant" / "0.png")
    assert result.label in ("cat", "ant", "bee") and not caplog.records
    report = evaluate(place, pets, workers=0, image_size=32)
    assert [row.name for row in report.per_class] == ["cat", "ant", "bee"] and not caplog.records
    # the same weights under the names in the folders' order are matched otherwise
    card = json.loads((place / "config.json").read_text())
    del card["id2label"]
    (place / "config.json").write_text(json.dumps({**card, "num_labels": 3}))
    evaluate(place, pets, workers=0, image_size=32)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "order alone" in line and "ant, bee, cat" in line


def test_folders_of_wordnet_are_matched_by_order_with_a_word(
    transformers_directory: Path, own_pets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i, name in enumerate(("ant", "bee", "cat")):
        (own_pets / "val" / name).rename(own_pets / "val" / f"n0000000{i}")
    report = evaluate(transformers_directory, own_pets, workers=0, image_size=32)
    assert [row.name for row in report.per_class] == ["n00000000", "n00000001", "n00000002"]
    assert "order alone" in caplog.text
    (own_pets / "val" / "n00000002").rename(own_pets / "val" / "wasp")
    with pytest.raises(DataError, match="wasp"):
        evaluate(transformers_directory, own_pets, workers=0, image_size=32)


@pytest.mark.parametrize("table", [{"0": "a", "1": "b", "3": "c"}, {"0": "a", "1": 7, "2": "c"}, ["a", "b"]])
def test_a_name_for_each_class_or_none(table: object, transformers_directory: Path) -> None:
    file = transformers_directory / "config.json"
    card = json.loads(file.read_text())
    field = "label_names" if isinstance(table, list) else "id2label"
    file.write_text(json.dumps({**card, field: table}))
    with pytest.raises(ConfigError, match=field):
        load_model(transformers_directory)


def test_placeholders_are_no_names(transformers_directory: Path) -> None:
    file = transformers_directory / "config.json"
    names = {str(i): f"LABEL_{i}" for i in range(3)}
    file.write_text(json.dumps({**json.loads(file.read_text()), "id2label": names}))
    assert load_model(transformers_directory).classes is None
