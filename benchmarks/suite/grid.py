"""The wide grid: every family's smallest published model under every condition."""

from itertools import product

from benchmarks.suite.row import Claim, Device, Mode, Row

TIMM = ("poolformer_s12", "poolformerv2_s12", "convformer_s18", "caformer_s18")
"""Models that timm has too."""
CYCLEMLP = ("cyclemlp_b1",)
ALONE = ("identityformer_s12", "randformer_s12", "metaformer_ppaa_s12")
"""Models that no one else offers: how long they take is told."""
DTYPES, BATCHES = ("fp32", "bf16"), (1, 8, 64)


def grid(device: Device) -> tuple[Row, ...]:
    """Every family × {fp32, bf16} × {batch 1, 8, 64} × {inference, training}, eager and compiled."""
    modes: tuple[Mode, ...] = ("inference", "training")
    conditions = product((*TIMM, *CYCLEMLP, *ALONE), modes, DTYPES, BATCHES)
    return tuple(
        Row(model=model, device=device, mode=mode, dtype=dtype, batch=batch, subject="grid", claims=claims)
        for model, mode, dtype, batch in conditions
        for claims in (_claims(model, mode),)
    )


def _claims(model: str, mode: Mode) -> tuple[Claim, ...]:
    """The same form on both sides; in inference our eager form may be the optimized one."""
    optimized = ("ours optimized",) if mode == "inference" else ()
    compiled = ("ours optimized compiled",) if mode == "inference" else ()
    eager_rivals, compiled_rivals = _rivals(model)
    return (
        Claim("eager by eager", ("ours eager", *optimized), eager_rivals),
        Claim("compiled by compiled", ("ours compiled", *compiled), compiled_rivals),
    )


def _rivals(model: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if model in TIMM:
        return ("timm eager", "timm channels_last"), ("timm channels_last compiled",)
    if model in CYCLEMLP:
        return ("deformable eager",), ("deformable compiled",)
    return (), ()
