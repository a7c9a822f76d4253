"""Optimizers, and parameter groups for weight decay and layer-wise learning-rate decay."""

from typing import Any

from torch import nn, optim

from metaformer.config import OptimConfig

Group = dict[str, Any]


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[Group]:
    """Trainable parameters grouped by weight decay and learning-rate scale, in the order of the model.

    One-dimensional parameters, biases and those in `model.no_weight_decay()` have no weight decay. With
    layer decay the head learns at the full rate and each block `layer_decay` times slower than the next one
    (https://arxiv.org/abs/2003.10555, section 3). Each group has `params`, `names`, `weight_decay` and
    `lr_scale`.
    """
    no_decay: Any = getattr(model, "no_weight_decay", set)
    undecayed = no_decay()
    scales = layer_scales(model, layer_decay)
    groups: dict[tuple[float, float], Group] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim <= 1 or name.endswith(".bias") or name in undecayed
        key = (0.0 if plain else weight_decay, scales.get(name, 1.0))
        empty: Group = {"params": [], "names": [], "weight_decay": key[0], "lr_scale": key[1]}
        group = groups.setdefault(key, empty)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def layer_scales(model: nn.Module, layer_decay: float) -> dict[str, float]:
    """Learning-rate factor of each parameter by its depth, from `model.group_matcher()`."""
    if layer_decay == 1.0:
        return {}
    from timm.models import group_parameters

    matcher: Any = model.group_matcher
    depths = group_parameters(model, matcher(coarse=False), reverse=True)
    last = max(depths.values())
    return {name: layer_decay ** (last - depth) for name, depth in depths.items()}


def build_optimizer(config: OptimConfig, model: nn.Module) -> optim.Optimizer:
    """The configured optimizer over a model's parameter groups."""
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    lr = config.peak_lr
    if config.name == "sgd":
        return optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    if config.name == "lamb":
        from timm.optim import Lamb

        return Lamb(groups, lr=lr, betas=config.betas, eps=config.eps)
    return optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps, fused=True)


def set_learning_rate(optimizer: optim.Optimizer, lr: float) -> None:
    """Set the learning rate of each group, times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
