"""What holds for every task of `TASKS`."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.checkpoint.checkpoint import read_checkpoint
from metaformer.cli import main
from metaformer.cli.options import options_of
from metaformer.config import TrainConfig
from metaformer.data.sampler import Sample
from metaformer.errors import ConfigError, UnknownName
from metaformer.inference.evaluate import COMMON, check_options, evaluate, task_options
from metaformer.inference.model import load_model
from metaformer.inference.predictor import Predictor
from metaformer.recipes import RECIPES
from metaformer.serialize import from_dict, to_dict
from metaformer.tasks import FOLDERS, TASKS
from metaformer.tasks.base import LoadedModel, Task, TaskSpec
from metaformer.tasks.outputs import Prediction
from metaformer.tasks.stream import ImageInput, ImageList
from metaformer.training.check import check_config
from metaformer.training.train import train
from metaformer.weights.hub import from_pretrained, save_pretrained
from metaformer.weights.io import write_state
from toys import build_task, demo_config

OPTIONS = ("evaluation", "predictor", "write", "check_data")
"""Fields of TaskSpec whose functions take options."""
every_task = pytest.mark.parametrize("spec", TASKS.values(), ids=TASKS)


@pytest.fixture
def image() -> Image.Image:
    torch.manual_seed(0)
    return Image.fromarray(torch.randint(0, 256, (60, 80, 3), dtype=torch.uint8).numpy())


@every_task
def test_names_of_a_specification_exist(spec: TaskSpec) -> None:
    assert TASKS[spec.name] is spec
    assert import_module(f"metaformer.tasks.{FOLDERS[spec.name]}.spec").SPEC is spec
    assert spec.section in {field.name for field in fields(TrainConfig)}
    for field in spec.unused:
        attrgetter(field)(TrainConfig())
    assert RECIPES[f"demo/{spec.name}"]().task == spec.name


def options_in(spec: TaskSpec, field: str) -> set[str]:
    """Options of a task."""
    return {name for name, specs in task_options(field).items() if spec in specs}


@every_task
@pytest.mark.parametrize("field", OPTIONS)
def test_options_have_a_type_and_a_description(spec: TaskSpec, field: str) -> None:
    options = list(options_of(getattr(spec, field), skip=COMMON))
    assert {option.name for option in options} == options_in(spec, field)
    assert all(option.help for option in options)


def other_value(value: Any) -> Any:
    """A valid value of a field that differs from this one."""
    if isinstance(value, bool):
        return not value
    return "a file" if value is None else value + (4 if isinstance(value, int) else 0.5)


@every_task
def test_fields_that_a_task_does_not_use_are_refused_by_name(spec: TaskSpec) -> None:
    plain = to_dict(RECIPES[f"demo/{spec.name}"]())
    plain["data"]["root"] = "somewhere"
    check_config(from_dict(TrainConfig, plain))
    unused = list(spec.unused)
    for section in {other.section for other in TASKS.values()} - {spec.section}:
        numbers = [name for name, value in plain[section].items() if isinstance(value, int | float)]
        unused.append(f"{section}.{numbers[0]}")
    for field in unused:
        section, _, name = field.partition(".")
        changed = {**plain, section: {**plain[section], name: other_value(plain[section][name])}}
        with pytest.raises(ConfigError, match=f"{re.escape(field)}: .*{spec.title}"):
            check_config(from_dict(TrainConfig, changed))


@every_task
def test_a_value_that_is_no_choice_is_refused(spec: TaskSpec, untrained: dict[str, Path]) -> None:
    model = load_model(untrained[spec.name])
    for field in ("evaluation", "predictor", "write"):
        for option in options_of(getattr(spec, field)):
            if isinstance(option.kind, tuple):
                check_options(field, model, dict.fromkeys([option.name], option.kind[0]))
                with pytest.raises(UnknownName, match=option.name):
                    check_options(field, model, {option.name: "other"})


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (["predict"], ("predictor", "write")),
        (["evaluate"], ("evaluation",)),
        (["data", "check"], ("check_data",)),
    ],
)
def test_help_has_every_task_and_option(
    command: list[str], options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    for spec in TASKS.values():
        assert spec.title in text
        for field in options:
            for name in options_in(spec, field):
                assert f"--{name.replace('_', '-')} " in text


def predict(model: LoadedModel, image: Image.Image) -> dict[str, Any]:
    predictor = model.spec.predictor(model.to(torch.device("cpu"), "none"))
    (prediction,) = predictor.predict(ImageList(image))
    values: dict[str, Any] = prediction.result.to_dict()
    return values


@every_task
def test_cards_build_the_same_model_again(
    spec: TaskSpec, demo: Path, tmp_path: Path, image: Image.Image
) -> None:
    task = build_task(demo_config(spec.name, demo, data={"background": "white"}))
    card = json.loads(json.dumps(task.card()))
    loaded = spec.load(spec, card)
    loaded.model.load_state_dict(task.model.state_dict())
    assert loaded.spec is spec and loaded.name == task.name and loaded.preprocess == task.preprocess
    assert loaded.classes is not None and loaded.num_classes == len(loaded.classes)
    write_state(tmp_path / "model.safetensors", task.model.state_dict())
    (tmp_path / "config.json").write_text(json.dumps(task.hub_card()))
    described = load_model(tmp_path)
    assert described.spec is spec and described.classes == loaded.classes
    assert (described.preprocess, described.metadata) == (loaded.preprocess, loaded.metadata)
    assert predict(described, image) == predict(loaded, image)
    save_pretrained(from_pretrained(tmp_path), tmp_path / "again")
    again = load_model(tmp_path / "again")
    assert again.spec is spec and again.metadata == loaded.metadata
    assert again.preprocess == loaded.preprocess and loaded.preprocess.background == (255, 255, 255)
    assert predict(again, image) == predict(loaded, image)


@every_task
def test_transparent_pixels_are_blended_alike_everywhere(spec: TaskSpec, demo: Path, tmp_path: Path) -> None:
    """In training, evaluation and prediction, as if the files had been blended before."""
    color = (9, 200, 30)
    for name in ("clear", "blended"):
        shutil.copytree(demo / spec.name, tmp_path / name / spec.name)

    def build(name: str, **data: Any) -> Task:
        return build_task(demo_config(spec.name, tmp_path / name, data=data))

    def tensors(task: Task) -> list[torch.Tensor]:
        return [task.train[Sample(0, 0)][0], next(iter(task.evaluation.loader)).images]

    def predictions(*images: ImageInput) -> list[Prediction[Any]]:
        model = spec.load(spec, asked.card())
        model.model.load_state_dict(asked.model.state_dict())
        return list(spec.predictor(model.to(torch.device("cpu"), "none")).predict(ImageList(images)))

    dropped = build("clear")
    sources: tuple[Any, ...] = (dropped.train.source, dropped.evaluation.loader.dataset.source)
    for path in [source.path(0) for source in sources]:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(path, "PNG")
        blended = Image.alpha_composite(Image.new("RGBA", image.size, color), image).convert("RGB")
        plain = tmp_path / "blended" / path.relative_to(tmp_path / "clear")
        blended.save(plain, "PNG")
    asked, expected = build("clear", background=color), build("blended")
    for ours, theirs, other in zip(*map(tensors, (asked, expected, dropped)), strict=True):
        assert torch.equal(ours, theirs) and not torch.equal(ours, other)
    *same, reference = predictions(path, image, np.asarray(image), plain)
    for found in same:
        assert {**found.result.to_dict(), "path": ""} == {**reference.result.to_dict(), "path": ""}
        assert found.pixels().tobytes() == blended.tobytes()


@every_task
def test_networks_begin_with_the_weights_of_a_classifier(
    spec: TaskSpec, demo: Path, classify_run: Path
) -> None:
    file = classify_run / "best" / "model.safetensors"
    state = build_task(demo_config(spec.name, demo, model={"checkpoint": str(file)})).model.state_dict()
    classifier = load_model(classify_run).model.state_dict()
    prefix = "" if "stem.conv.weight" in state else "backbone."
    for name in ("stem.conv.weight", "stages.3.blocks.0.mlp.fc2.weight"):
        assert torch.equal(state[prefix + name], classifier[name])


@every_task
def test_demo_data_is_recognized_and_right(spec: TaskSpec, demo: Path) -> None:
    root = demo / spec.name
    certainty = {other.name: other.recognize(root) for other in TASKS.values()}
    assert [name for name, value in certainty.items() if value == max(certainty.values())] == [spec.name]
    report = spec.check_data(root, ("train", "val"), workers=1, progress=False)
    assert report.ok and [split.name for split in report.splits] == ["train", "val"]


@every_task
def test_a_run_is_trained_evaluated_and_used(
    spec: TaskSpec, demo: Path, tmp_path: Path, image: Image.Image, parse_command: Callable[[str], None]
) -> None:
    result = train(demo_config(spec.name, demo), tmp_path / "run")
    assert result.complete and result.steps == 2 and result.metric in result.metrics
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    state = read_checkpoint(tmp_path / "run" / "best").state
    for command in spec.report(state, demo_config(spec.name, demo)).commands.splitlines():
        parse_command(command)
    report = evaluate(tmp_path / "run", device="cpu", workers=0)
    assert report.metrics == pytest.approx(result.metrics, nan_ok=True)
    assert json.loads(report.save(tmp_path / "report.json").read_text()) == json.loads(
        json.dumps(report.to_dict())
    )
    predictor = Predictor(tmp_path / "run", device="cpu")
    (prediction,) = predictor.predictions(image)
    lines = list(spec.write([prediction], tmp_path / "out", predictor.model, draw=True))
    assert lines and all(line.startswith("1 ") for line in lines)
    (line,) = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line).items() >= json.loads(json.dumps(prediction.result.to_dict())).items()
    assert [file.name for file in (tmp_path / "out" / "images").iterdir()] == ["image.jpg"]
