from dataclasses import replace

import pytest
import torch
from torch import nn

from metaformer.config import OptimConfig
from metaformer.factory import create_model
from metaformer.training.optim import build_optimizer, layer_scales, parameter_groups, set_learning_rate

NAMES = ("adamw", "lamb", "sgd")


def tiny(**fields: object) -> nn.Module:
    return create_model("poolformer_n", num_classes=3, depths=(2, 1, 1, 1), dims=(8, 8, 16, 16), **fields)


def stepped(config: OptimConfig) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = build_optimizer(config, model)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def test_biases_vectors_and_listed_parameters_have_no_weight_decay() -> None:
    model = tiny()
    groups = parameter_groups(model, 0.05)
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decay.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert decay[name] == (0.0 if parameter.ndim <= 1 or name.endswith("bias") else 0.05), name
    model.no_weight_decay = lambda: {"head.fc.weight"}  # type: ignore[method-assign, assignment]
    named = {n: g["weight_decay"] for g in parameter_groups(model, 0.05) for n in g["names"]}
    assert {name for name in named if named[name] != decay[name]} == {"head.fc.weight"}


def test_frozen_parameters_are_not_optimized() -> None:
    model = tiny(mixers=("identity", "identity", "random", "random"), image_size=(32, 32))
    names = {name for group in parameter_groups(model, 0.0) for name in group["names"]}
    assert names == {name for name, p in model.named_parameters() if p.requires_grad}


def test_layer_decay_lowers_the_rate_from_block_to_block() -> None:
    model = tiny()
    scales = layer_scales(model, 0.5)
    assert scales["head.fc.weight"] == 1.0
    order = ["stem.conv.weight", *(f"stages.{i}.mlp" for i in ("0.blocks.0", "0.blocks.1"))]
    first, second, third = (
        next(value for name, value in scales.items() if name.startswith(start.replace(".mlp", "")))
        for start in order
    )
    assert second == 2 * first and third == 2 * second
    last = next(value for name, value in scales.items() if name.startswith("stages.3.blocks.0"))
    assert first < third < last <= 1.0


def test_each_group_has_its_scale_of_the_learning_rate() -> None:
    optimizer = build_optimizer(replace(OptimConfig(), layer_decay=0.5), tiny())
    set_learning_rate(optimizer, 0.8)
    assert {group["lr"] / group["lr_scale"] for group in optimizer.param_groups} == {0.8}
    assert len({group["lr"] for group in optimizer.param_groups}) > 3


@pytest.mark.parametrize("name", NAMES)
def test_optimizers_differ(name: str) -> None:
    config = OptimConfig(name=name, lr=0.01, weight_decay=0.0)  # type: ignore[arg-type]
    ours = stepped(config)
    for other in NAMES:
        theirs = stepped(replace(config, name=other))  # type: ignore[arg-type]
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)) == (other == name)


def test_adamw_equals_torch() -> None:
    ours = stepped(OptimConfig(lr=0.01, weight_decay=0.0, betas=(0.8, 0.9), eps=1e-3))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    reference = torch.optim.AdamW(model.parameters(), 0.01, (0.8, 0.9), 1e-3, 0.0)
    for _ in range(3):
        reference.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
        reference.step()
    for mine, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.detach())


def test_weight_decay_shrinks_weights_only() -> None:
    plain, decayed = (stepped(OptimConfig(lr=0.01, weight_decay=decay)) for decay in (0.0, 0.5))
    assert decayed[0].norm() < plain[0].norm()
