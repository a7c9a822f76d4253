"""Steps of training, checks before and diagnoses after."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metaformer.config import DataConfig, OptimConfig, TrainConfig
from metaformer.data.dataset import Batch
from metaformer.distributed import World
from metaformer.errors import ConfigError, WeightsError
from metaformer.factory import create_model
from metaformer.serialize import from_dict
from metaformer.tasks import TASKS
from metaformer.tasks.base import StepContext
from metaformer.training.check import check_config
from metaformer.training.diagnose import (
    REMEDIES,
    NonFinite,
    is_finite,
    nonfinite_gradient,
    nonfinite_weight,
    record_nonfinite,
)
from metaformer.training.schedule import Schedule
from metaformer.training.trainer import Trainer
from toys import Configure, build_task


def trainer(config: TrainConfig, lr: float = 1e-2) -> Trainer:
    return Trainer(config, build_task(config, World()), Schedule(lr, 100, shape="constant"), World())


def batch(count: int = 6, views: int = 0, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    shape = (count, views, 3, 32, 32) if views else (count, 3, 32, 32)
    return Batch(torch.randn(shape), torch.arange(count) % 3, torch.arange(count))


def trained(config: TrainConfig, steps: int = 2, **options: Any) -> dict[str, Tensor]:
    one = trainer(config)
    for step in range(steps):
        one.take_step([batch(seed=step, **options)], 0)
    return {name: value.clone() for name, value in one.task.model.state_dict().items()}


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return any(not torch.equal(one[name], other[name]) for name in one)


def test_a_batch_norm_over_one_value_is_explained(configure: Configure) -> None:
    overrides = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "norm": "batch_norm"}
    one = trainer(configure(model={"overrides": overrides}))
    with pytest.raises(ConfigError, match=r"step 0: a batch norm .* 1 image\(s\) .*data.batch_size"):
        one.take_step([batch(1)], 0)
    one.take_step([batch(2)], 0)


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"head_dropout": 0.5}},
        {"model": {"drop_path_rate": 0.5}},
        {"augment": {"mixup": 0.8}},
        {"augment": {"cutmix": 1.0}},
        {"loss": {"smoothing": 0.1}},
        {"loss": {"name": "bce"}},
        {"loss": {"class_weights": [1.0, 2.0, 3.0]}},
        {"optim": {"name": "lamb"}},
        {"optim": {"name": "sgd"}},
        {"optim": {"clip": 1e-3}},
        {"optim": {"layer_decay": 0.5}},
        {"optim": {"weight_decay": 0.5}},
        {"optim": {"eps": 1e-2}},
        {"optim": {"betas": [0.5, 0.6]}},
        {"runtime": {"amp": "bf16"}},
        {"seed": 1},
    ],
    ids=str,
)
def test_each_option_changes_the_weights(configure: Configure, sections: dict[str, Any]) -> None:
    plain = trained(configure())
    assert not differ(plain, trained(configure()))
    assert differ(plain, trained(configure(**sections)))
    assert not differ(trained(configure(**sections)), trained(configure(**sections)))


@pytest.mark.parametrize(
    ("sections", "tolerance"),
    [
        ({"model": {"grad_checkpointing": True}}, {}),
        ({"model": {"grad_checkpointing": "mlp"}}, {}),
        pytest.param({"runtime": {"compile": True}}, {"rtol": 1e-2, "atol": 1e-3}, marks=pytest.mark.slow),
    ],
)
def test_what_only_saves_memory_or_time_does_not_change_the_weights(
    configure: Configure, sections: dict[str, Any], tolerance: dict[str, float]
) -> None:
    plain, other = trained(configure()), trained(configure(**sections))
    for name, value in plain.items():
        torch.testing.assert_close(other[name], value, **tolerance)


@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_accumulation_equals_one_big_batch(configure: Configure, amp: str) -> None:
    config = configure(runtime={"amp": amp})
    whole, parts, big = trainer(config), trainer(config), batch(12)
    pieces = [Batch(*(part[i : i + 4] for part in big)) for i in (0, 4, 8)]
    one, other = whole.take_step([big], 0), parts.take_step(pieces, 0)
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-5 if amp == "none" else 1e-2)
    assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4 if amp == "none" else 5e-2)
    if amp == "none":
        for name, value in whole.optimizer.state.items():
            index = [id(p) for p in whole.optimizer.state].index(id(name))
            theirs = list(parts.optimizer.state.values())[index]
            torch.testing.assert_close(theirs["exp_avg"], value["exp_avg"], rtol=1e-3, atol=1e-6)


def test_clipping_bounds_the_step_of_sgd(configure: Configure) -> None:
    config = configure(optim={"name": "sgd", "clip": 0.01, "weight_decay": 0.0})
    one = trainer(config, lr=1.0)
    before = torch.cat([p.detach().flatten() for p in one.task.model.parameters()])
    norm = one.take_step([batch()], 0)["grad_norm"]
    after = torch.cat([p.detach().flatten() for p in one.task.model.parameters()])
    assert norm > 0.1
    # Nesterov's first step is the gradient times 1 + momentum
    assert float((after - before).norm()) == pytest.approx(0.01 * 1.9, rel=1e-3)


def test_mixup_ends_at_its_epoch(configure: Configure) -> None:
    mixed = trainer(configure(augment={"mixup": 0.8, "mix_off_epoch": 3}))
    plain = trainer(configure())
    early, late = (
        mixed.task.losses(mixed.model, batch(), StepContext(5, epoch))["loss"].item() for epoch in (2, 3)
    )
    unmixed = plain.task.losses(plain.model, batch(), StepContext(5, 3))["loss"].item()
    assert late == pytest.approx(unmixed, rel=1e-6) and early != pytest.approx(unmixed, rel=1e-5)


def test_the_ema_is_evaluated_and_saved(configure: Configure) -> None:
    averaged = trainer(configure(ema={"decay": 0.5}))
    raw = trainer(configure(ema={"decay": 0.5, "evaluate": False}))
    start = averaged.task.model.head.fc.weight.detach().clone()
    for one in (averaged, raw):
        one.take_step([batch()], 0)
    images = batch().images
    model = raw.task.model
    assert raw.eval_model is model and averaged.eval_model is not averaged.task.model
    torch.testing.assert_close(averaged.eval_model.head.fc.weight, (start + model.head.fc.weight) / 2)
    assert not torch.equal(averaged.forward(images), raw.forward(images))
    torch.testing.assert_close(raw.forward(images), model.eval()(images))


def test_evaluation_has_no_dropout_and_restores_training_mode(configure: Configure) -> None:
    one = trainer(configure(model={"head_dropout": 0.9, "drop_path_rate": 0.9}))
    one.task.model.train()
    assert torch.equal(one.forward(batch().images), one.forward(batch().images))
    assert one.task.model.training


def test_jsd_compares_views(configure: Configure) -> None:
    config = configure(loss={"name": "jsd"}, augment={"aug_splits": 3})
    one, views = trainer(config), batch(4, views=3)
    views.images[:, 1:] = views.images[:, :1]
    same = one.task.losses(one.model, views, StepContext(5, 0))["loss"].item()
    clean = trainer(configure()).task.criterion(one.model(views.images[:, 0]), views.labels).item()
    assert same == pytest.approx(clean, rel=1e-4)  # equal views do not diverge
    assert differ(trained(config, views=3), trained(configure(augment={"aug_splits": 3}), views=3))


def test_float16_scales_its_loss_and_steps(configure: Configure) -> None:
    one = trainer(configure(runtime={"amp": "fp16"}))
    before = one.task.model.head.fc.weight.detach().clone()
    metrics = one.take_step([batch()], 0)
    assert one.scaler.is_enabled() and metrics["grad_norm"] < 1e3
    assert not torch.equal(before, one.task.model.head.fc.weight)


def test_an_overflow_in_float16_skips_the_step(configure: Configure) -> None:
    one = trainer(configure(runtime={"amp": "fp16"}))
    one.scaler.load_state_dict({**one.scaler.state_dict(), "scale": 3e38})
    before = {name: value.clone() for name, value in one.task.model.state_dict().items()}
    metrics = one.take_step([batch()], 0)
    assert metrics["overflow"] == 1 and "grad_norm" not in metrics
    assert not differ(before, one.task.model.state_dict())
    assert one.scaler.get_scale() < 3e38


def test_dropout_depends_on_the_step_and_not_on_earlier_draws(configure: Configure) -> None:
    config = configure(model={"head_dropout": 0.5})
    one, other = trainer(config), trainer(config)
    one.take_step([batch()], 0)
    prepared = batch()
    torch.rand(100)
    other.take_step([prepared], 0)
    assert not differ(one.task.model.state_dict(), other.task.model.state_dict())


def distillation(file: Path, name: str, teacher: nn.Module, **fields: Any) -> dict[str, Any]:
    """The section `loss` for a teacher, whose weights are written to a file."""
    save_file(teacher.state_dict(), file)
    return {"distill": "hard", "teacher": name, "teacher_checkpoint": str(file), **fields}


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_distillation_follows_the_teacher(configure: Configure, tmp_path: Path, kind: str) -> None:
    torch.manual_seed(3)
    teacher = create_model("poolformer_n", num_classes=3)
    teacher.head.fc.bias.data += torch.tensor([0.0, 0.0, 9.0])  # predicts the third class
    loss = distillation(tmp_path / "teacher.safetensors", "poolformer_n", teacher, distill=kind)
    one = trainer(configure(loss={**loss, "distill_alpha": 1.0}))
    for _ in range(10):
        metrics = one.take_step([batch()], 0)
    assert one.forward(batch().images).argmax(dim=1).tolist() == [2] * 6
    assert metrics["distill"] == pytest.approx(metrics["loss"])
    half = trained(configure(loss=loss))
    assert differ(half, trained(configure()))
    assert differ(half, trained(configure(loss={**loss, "distill": "hard" if kind == "soft" else "soft"})))


def test_a_timm_teacher_works_and_one_of_other_classes_is_refused(
    configure: Configure, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    teacher, other = (timm.create_model("resnet10t", num_classes=classes) for classes in (3, 7))
    loss = distillation(tmp_path / "t.safetensors", "timm:resnet10t", teacher)
    task = build_task(configure(loss=loss), World())
    assert task.distillation is not None and not task.distillation.teacher.training
    images = batch().images
    torch.testing.assert_close(task.distillation.teacher(images), teacher.eval()(images))
    with pytest.raises(WeightsError, match="seven"):
        build_task(
            configure(loss=distillation(tmp_path / "seven.safetensors", "timm:resnet10t", other)), World()
        )


@pytest.mark.parametrize("name", ["timm:resnet10x", "poolformer_s13"])
def test_an_unknown_teacher_is_an_error(configure: Configure, name: str) -> None:
    with pytest.raises(ConfigError, match=name.removeprefix("timm:")):
        build_task(configure(loss={"distill": "soft", "teacher": name}), World())


UNMIXED = {"mixup": 0.0, "cutmix": 0.0, "erase": 0.0}


def plain(task: str, section: str | None = None, field: str = "", value: Any = None) -> dict[str, Any]:
    """A valid configuration of a task, with one field changed."""
    values: dict[str, Any] = {"task": task, "data": {"root": "somewhere"}}
    if TASKS[task].unused:
        values["augment"] = dict(UNMIXED)
    if section is not None:
        values[section] = {**values.get(section, {}), field: value}
    return values


@pytest.mark.parametrize("task", TASKS)
def test_the_defaults_are_valid(task: str) -> None:
    check_config(from_dict(TrainConfig, plain(task)))


@pytest.mark.parametrize(
    ("task", "field", "value", "reason"),
    [
        ("classify", "data.batch_size", 0, "an integer of at least 1"),
        ("classify", "data.eval_batch_size", 0, ""),
        ("classify", "data.workers", -1, "at least 0"),
        ("classify", "data.repeated_aug", 0, ""),
        ("classify", "data.root", "", ""),
        ("classify", "optim.accumulate", 0, ""),
        ("classify", "optim.accumulate", 3, "multiple of 3"),
        ("classify", "optim.lr", 0.0, "above 0"),
        ("classify", "optim.lr", float("nan"), ""),
        ("classify", "optim.clip", -1.0, ""),
        ("classify", "optim.betas", [0.9, 1.0], "at least 0 and below 1"),
        ("classify", "optim.layer_decay", 1.5, "above 0 and at most 1"),
        ("classify", "schedule.epochs", 0, ""),
        ("classify", "schedule.steps", 0, ""),
        ("classify", "schedule.power", 0.0, ""),
        ("classify", "schedule.gamma", 0.0, ""),
        ("classify", "schedule.milestones", [8, "x"], ""),
        ("classify", "evaluate.every_steps", -1, ""),
        ("classify", "schedule.min_lr", 1.0, "above optim.lr"),
        ("classify", "ema.decay", 1.0, ""),
        ("classify", "evaluate.crop", 0.0, ""),
        ("classify", "runtime.keep", 0, ""),
        ("classify", "runtime.threads", 0, ""),
        ("classify", "augment.aug_splits", 3, "augment.mixup"),
        ("classify", "loss.name", "jsd", "augment.aug_splits"),
        ("classify", "loss.distill", "hard", "loss.teacher"),
        ("classify", "model.drop_path_rate", 1.0, ""),
        ("classify", "segment.head_dim", 7, "no option of"),
        ("multilabel", "multilabel.gamma_neg", -1.0, ""),
        ("multilabel", "multilabel.margin", 1.0, ""),
        ("multilabel", "multilabel.threshold", 1.5, ""),
        ("multilabel", "multilabel.separator", "", ""),
        ("multilabel", "multilabel.pos_weight", [-1.0], ""),
        ("segment", "segment.fpn_dim", 0, ""),
        ("segment", "segment.stride", 0, ""),
        ("segment", "segment.resize", [0, 512], ""),
        ("segment", "segment.scale", [2.0, 0.5], ""),
        ("segment", "segment.dropout", 1.0, ""),
        ("segment", "segment.cat_max_ratio", 0.0, ""),
        ("segment", "segment.ohem", 1.5, ""),
        ("segment", "segment.dice", -1.0, ""),
        ("segment", "segment.scales", [], ""),
        ("segment", "segment.scales", ["a"], ""),
        ("segment", "segment.class_weights", [-1.0], ""),
        ("segment", "augment.mixup", 0.5, "no option of"),
        ("segment", "augment.aug_splits", 3, "no option of"),
        ("segment", "detect.scales", [2.0], "no option of"),
        ("segment", "evaluate.class_subset", "names.txt", "no option of"),
        ("detect", "detect.fpn_dim", 0, ""),
        ("detect", "detect.long_side", 0, ""),
        ("detect", "detect.short_sides", [], ""),
        ("detect", "detect.short_sides", [480, 0.5], "integer"),
        ("detect", "detect.jitter", [2.0, 0.1], ""),
        ("detect", "detect.score_threshold", 1.5, ""),
        ("detect", "detect.nms_threshold", -0.1, ""),
        ("detect", "detect.anchor_scale", 0.0, ""),
        ("detect", "detect.scales", [], ""),
        ("detect", "augment.cutmix", 0.5, "no option of"),
        ("detect", "loss.smoothing", 0.2, "no option of"),
        ("detect", "evaluate.crops", 5, "no option of"),
        ("detect", "model.head_dropout", 0.1, "no option of"),
    ],
)  # fmt: skip
def test_each_invalid_field_is_named(task: str, field: str, value: Any, reason: str) -> None:
    section, name = field.split(".")
    with pytest.raises(ConfigError, match=f"{field}.*{reason}"):
        check_config(from_dict(TrainConfig, plain(task, section, name, value)))


@pytest.mark.parametrize("seed", [2**63, -(10**30)])
def test_a_seed_that_no_generator_takes(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"seed: {seed}"):
        check_config(from_dict(TrainConfig, {**plain("classify"), "seed": seed}))


def test_the_batch_is_divided_among_the_ranks() -> None:
    config = from_dict(TrainConfig, {"data": {"root": "x", "batch_size": 8}, "optim": {"accumulate": 2}})
    check_config(config, world_size=4)
    with pytest.raises(ConfigError, match=r"data.batch_size.* 3 device"):
        check_config(config, world_size=3)


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - 1e9).log()


def test_the_first_module_with_a_nonfinite_output_is_recorded() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), Log()), nn.Linear(2, 2))
    with record_nonfinite(model) as modules:
        model(torch.ones(1, 2))
    assert modules == ["1.1"]
    with record_nonfinite(model[0]) as modules:
        model[0](torch.ones(1, 2))
    assert modules == []
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_weights_and_buffers_are_found(value: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert nonfinite_weight(model) is None
    model[1].running_var[1] = value
    assert nonfinite_weight(model) == "1.running_var"
    with torch.no_grad():
        model[0].bias[0] = value
    assert nonfinite_weight(model) == "0.bias"


def test_the_first_nonfinite_gradient_of_the_backward_pass_is_found() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    assert nonfinite_gradient(model) is None
    for name in ("0.weight", "1.weight"):
        model.get_parameter(name).grad = torch.tensor([[math.nan]])
    assert nonfinite_gradient(model) == "1.weight"


def test_integers_are_finite() -> None:
    assert is_finite(torch.tensor([1])) and not is_finite(torch.tensor([math.nan]))


@pytest.mark.parametrize("kind", REMEDIES)
def test_the_message_is_one_line_with_a_remedy(kind: str) -> None:
    text = NonFinite(kind, "stem.conv", [f"{i}.png" for i in range(10)]).message(max_files=3)
    assert f"the {kind} is not finite, first at stem.conv" in text and REMEDIES[kind] in text
    assert text.endswith("Images: 0.png, 1.png, 2.png and 7 more") and "\n" not in text


@pytest.mark.parametrize(
    ("batch", "accumulate", "world", "remedy"),
    [
        (1, 1, 1, "data.batch_size 2"),
        (4, 4, 1, "optim.accumulate 2"),
        (4, 2, 2, "optim.accumulate 1"),
        (4, 1, 4, "data.batch_size 8"),
    ],
)
def test_upernet_needs_two_images_in_each_pass(batch: int, accumulate: int, world: int, remedy: str) -> None:
    values = plain("segment", "segment", "head", "upernet")
    values["data"]["batch_size"], values["optim"] = batch, {"accumulate": accumulate}
    values["runtime"] = {"device": "cpu"}
    with pytest.raises(ConfigError, match=f"batch norm over its 1×1 map needs two: set {remedy}$"):
        check_config(from_dict(TrainConfig, values), world)
    name, _, number = remedy.rpartition(" ")
    section, _, field = name.partition(".")
    values[section][field] = int(number)
    check_config(from_dict(TrainConfig, values), world)
    values["data"]["batch_size"], values["optim"] = batch, {"accumulate": accumulate}
    check_config(from_dict(TrainConfig, {**values, "segment": {"head": "semantic_fpn"}}), world)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: TrainConfig(data={"root": "x"}), "data: a mapping, where TrainConfig takes a DataConfig; "),  # type: ignore[arg-type]
        (lambda: TrainConfig(data=None), "data: None must be a mapping"),  # type: ignore[arg-type]
        (lambda: TrainConfig(model="poolformer_s12"), "model: 'poolformer_s12' must be"),  # type: ignore[arg-type]
        (lambda: TrainConfig(seed="1"), "seed: '1' must be an integer"),  # type: ignore[arg-type]
        (lambda: TrainConfig(task="clasify"), "did you mean classify"),  # type: ignore[arg-type]
        (lambda: DataConfig(batch_size="8"), "batch_size: '8' must be an integer"),  # type: ignore[arg-type]
        (lambda: DataConfig(root=Path("x")), "root: .* must be a string"),  # type: ignore[arg-type]
        (lambda: OptimConfig(lr=True), "lr: True must be a finite number"),
        (lambda: OptimConfig(lr=float("inf")), "lr: inf must be a finite number"),
        (lambda: check_config({"data": {}}), "a dict is no TrainConfig"),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_are_refused_where_they_are_given(build: Callable[[], object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        build()
