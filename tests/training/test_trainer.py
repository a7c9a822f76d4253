"""Each option of a step changes the weights; each test fails if its option has no effect."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metaformer.config import TrainConfig
from metaformer.data.dataset import Batch
from metaformer.distributed import World
from metaformer.errors import ConfigError, WeightsError
from metaformer.factory import create_model
from metaformer.tasks.base import StepContext
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
