"""Rows of the suite: contenders that are measured together, and the claims about them.

A contender's name is its side, its forms in order, then the conditions in which it differs from its row, such
as `ours optimized compiled bf16`.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Literal, Self

Kind = Literal["speed", "memory", "pixels"]
Device = Literal["cpu", "cuda"]
Mode = Literal["inference", "training"]
TIMM_MODELS = (
    *("poolformer_s12", "poolformerv2_s12", "convformer_s18", "caformer_s18"),
    *("convnext_tiny", "inception_next_tiny", "mambaout_tiny"),
)
"""Models that timm has."""
CYCLEMLP_MODELS = ("cyclemlp_b1",)
OWN_MODELS = ("identityformer_s12", "randformer_s12", "metaformer_ppaa_s12")
"""Models that other libraries lack."""
DTYPES, BATCHES = ("fp32", "bf16"), (1, 8, 64)
EAGER, OPTIMIZED = ("ours eager",), ("ours optimized",)
OURS = (*EAGER, *OPTIMIZED)
OURS_COMPILED = ("ours compiled", "ours optimized compiled")
OURS_BEST = (*OURS, *OURS_COMPILED, "ours frozen", "ours optimized frozen", "ours optimized aoti")
TIMM = ("timm eager", "timm channels_last")
TIMM_BEST = (
    *TIMM,
    "timm compiled",
    "timm channels_last compiled",
    "timm channels_last frozen",
    "timm channels_last aoti",
    "timm openvino",
)


@dataclass(frozen=True)
class Claim:
    """Comparison of the best of our contenders with the best of theirs."""

    title: str
    ours: tuple[str, ...]
    """Contenders, as `contender.Contender.read` takes them."""
    theirs: tuple[str, ...]
    target: float | None = None
    """Ratio to reach; None for a comparison without a target."""
    kind: Kind = "speed"
    """`speed`: their time relative to ours, at least the target. `memory`: our peak relative to theirs, at
    most the target. `pixels`: our time per pixel relative to theirs, at most the target."""

    @property
    def at_most(self) -> bool:
        """Whether lower is better."""
        return self.kind != "speed"

    @property
    def goal(self) -> str:
        """The target as text."""
        if self.target is None:
            return "–"
        return f"{'≤' if self.at_most else '≥'} {self.target:g} ×"


def optimized(target: float, theirs: tuple[str, ...] = TIMM_BEST) -> Claim:
    """What `metaformer.optimize` gives, not compiled, by the best of theirs."""
    return Claim("optimized, by timm's best", OPTIMIZED, theirs, target)


CONVOLUTIONS = Claim("convolutions alone, by the whole", OURS_BEST, ("ours convolutions",), 0.85)
FASTEST = Claim("the same in their fastest forms", OURS_BEST, ("ours fastest_convolutions",), 0.85)
SHARES = (replace(CONVOLUTIONS, target=None), replace(FASTEST, target=None))
STEPS = ("ours eager", "ours compiled")
RECOMPUTE_STEPS = ("ours recompute_mlp",)
TIMM_STEPS = (*TIMM, "timm compiled", "timm channels_last compiled")
SMP = ("smp eager", "smp channels_last", "smp channels_last frozen")
DEFORMABLE = ("deformable eager", "deformable compiled")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Contenders that are measured in alternating rounds in one process."""

    model: str
    device: Device
    mode: Mode = "inference"
    dtype: str = "fp32"
    batch: int = 8
    size: int = 224
    """Height of the images, and width where there is no other."""
    width: int | None = None
    subject: str = ""
    """Last part of the name, beside the conditions."""
    claims: tuple[Claim, ...]

    @property
    def name(self) -> str:
        """Device, model, mode, type and batch, as `--rows` filters them."""
        parts = (self.device, self.model, self.mode, self.dtype, f"b{self.batch}", self.subject)
        return "-".join(filter(None, parts))

    @property
    def contenders(self) -> tuple[str, ...]:
        """The claims' contenders, once each."""
        names = (name for claim in self.claims for name in (*claim.ours, *claim.theirs))
        return tuple(dict.fromkeys(names))

    def with_claims(self, claims: tuple[Claim, ...]) -> Self:
        """The row with other claims."""
        return replace(self, claims=claims)


ON_CPU = (
    Row(
        model="cyclemlp_b1",
        device="cpu",
        claims=(
            Claim("eager, by the deformable form", OURS, ("deformable eager",), 4.0),
            Claim(
                "compiled, by that form compiled",
                (*OURS_COMPILED, "ours optimized frozen"),
                ("deformable compiled",),
                4.5,
            ),
            Claim(
                "compiled in bf16, by that form compiled in fp32",
                ("ours compiled bf16", "ours optimized compiled bf16", "ours optimized frozen bf16"),
                ("deformable compiled",),
                8.0,
            ),
            Claim("not compiled, by that form compiled", ("ours optimized",), ("deformable compiled",)),
            Claim(
                "not compiled in bf16, by that form compiled in fp32",
                ("ours optimized bf16",),
                ("deformable compiled",),
            ),
        ),
    ),
    Row(
        model="cyclemlp_b1",
        device="cpu",
        mode="training",
        batch=4,
        claims=(
            Claim("step, eager, by the deformable form", ("ours eager",), ("deformable eager",), 4.0),
            Claim("step, best by that form's best", STEPS, DEFORMABLE),
        ),
    ),
    Row(
        model="poolformer_s12",
        device="cpu",
        claims=(
            optimized(1.1),
            Claim("best by best", OURS_BEST, TIMM_BEST, 1.05),
            Claim("eager by eager", OURS, TIMM, 1.05),
            CONVOLUTIONS,
            FASTEST,
        ),
    ),
    Row(
        model="poolformer_s12",
        device="cpu",
        dtype="bf16",
        claims=(
            optimized(1.15),
            Claim("best by best", OURS_BEST, TIMM_BEST, 1.15),
            Claim("eager by eager", OURS, TIMM, 1.3),
        ),
    ),
    Row(
        model="poolformer_s12",
        device="cpu",
        batch=1,
        claims=(optimized(1.08), Claim("latency, best by best", OURS_BEST, TIMM_BEST, 1.08)),
    ),
    Row(
        model="poolformer_s12",
        device="cpu",
        dtype="bf16",
        batch=1,
        claims=(optimized(1.2), Claim("latency, best by best", OURS_BEST, TIMM_BEST, 1.25)),
    ),
    Row(
        model="poolformer_s12",
        device="cpu",
        mode="training",
        claims=(
            Claim("step, best by best", STEPS, TIMM_STEPS, 1.2),
            Claim("step recomputing MLPs, by timm's best", RECOMPUTE_STEPS, TIMM_STEPS),
            Claim(
                "peak memory of a step recomputing MLPs, by timm compiled",
                RECOMPUTE_STEPS,
                ("timm compiled", "timm channels_last compiled"),
                0.5,
                "memory",
            ),
        ),
    ),
    Row(
        model="poolformer_s12",
        device="cpu",
        mode="training",
        subject="autocast",
        claims=(
            Claim(
                "step under bfloat16 autocast, best by best",
                ("ours autocast", "ours autocast compiled"),
                (
                    *("timm autocast", "timm channels_last autocast"),
                    *("timm autocast compiled", "timm channels_last autocast compiled"),
                ),
                1.3,
            ),
        ),
    ),
    Row(
        model="convformer_s18",
        device="cpu",
        claims=(optimized(1.08), Claim("best by best", OURS_BEST, TIMM_BEST, 1.05), *SHARES),
    ),
    Row(
        model="caformer_s18",
        device="cpu",
        claims=(optimized(1.08), Claim("best by best", OURS_BEST, TIMM_BEST, 1.2), *SHARES),
    ),
    *(
        Row(model=model, device="cpu", dtype="bf16", claims=(optimized(1.15),))
        for model in ("convformer_s18", "caformer_s18")
    ),
)
DENSE_ON_CPU = (
    Row(
        model="semantic_fpn_poolformer_s12",
        device="cpu",
        batch=1,
        size=512,
        subject="512",
        claims=(
            Claim("by smp's FPN on timm's backbone", OURS, SMP, 1.2),
            Claim(
                "by the same with the paper's 3×3 convolutions, which ours has",
                OURS,
                tuple(name.replace("smp", "smp_published") for name in SMP),
                1.2,
            ),
        ),
    ),
    Row(
        model="mask_rcnn_poolformer_s12",
        device="cpu",
        batch=1,
        size=800,
        width=1344,
        subject="800x1344",
        claims=(
            Claim(
                "by torchvision's on our backbone and weights",
                OURS,
                ("torchvision eager", "torchvision channels_last"),
                1.2,
            ),
        ),
    ),
)
BEST_ON_CUDA = (*OURS, *OURS_COMPILED, "ours optimized aoti", "ours optimized autotuned")
TIMM_ON_CUDA = (*TIMM, "timm channels_last compiled", "timm channels_last autotuned")
STEPS_ON_CUDA = (*STEPS, "ours autotuned")
ON_CUDA = (
    *(
        Row(
            model=model,
            device="cuda",
            dtype="bf16",
            batch=256,
            claims=(Claim("best by best", BEST_ON_CUDA, TIMM_ON_CUDA, target),),
        )
        for model, target in (("poolformer_s12", 1.7), ("convformer_s18", 1.3), ("caformer_s18", 1.3))
    ),
    Row(
        model="cyclemlp_b1",
        device="cuda",
        dtype="bf16",
        batch=256,
        claims=(
            Claim("best, by the deformable form's best", BEST_ON_CUDA, DEFORMABLE, 10.0),
            Claim(
                "best, by plain pad, slice, 1×1 compiled",
                BEST_ON_CUDA,
                ("padded compiled", "padded autotuned"),
                1.8,
            ),
        ),
    ),
    *(
        Row(
            model=model,
            device="cuda",
            mode="training",
            dtype="bf16",
            batch=128,
            claims=(Claim("step, best by best", STEPS_ON_CUDA, TIMM_ON_CUDA, 1.4),),
        )
        for model in ("poolformer_s12", "caformer_s18")
    ),
    Row(
        model="cyclemlp_b1",
        device="cuda",
        mode="training",
        dtype="bf16",
        batch=128,
        claims=(Claim("step, by the deformable form's best", STEPS_ON_CUDA, DEFORMABLE, 8.0),),
    ),
    Row(
        model="poolformer_s12",
        device="cuda",
        dtype="bf16",
        batch=1,
        claims=(
            Claim(
                "latency with graphs, by timm compiled",
                ("ours optimized graphs", "ours optimized autotuned"),
                ("timm channels_last compiled", "timm channels_last graphs", "timm channels_last autotuned"),
                1.6,
            ),
        ),
    ),
)
SIZES = (384, 512, 768, 1024)
BY_SIZE = tuple(
    Row(
        model=model,
        device="cpu" if dtype == "fp32" else "cuda",
        dtype=dtype,
        subject="sizes",
        claims=tuple(
            Claim(
                f"time per pixel at {size}, by that at 224",
                (f"ours optimized {size}",),
                ("ours optimized",),
                1.1,
                "pixels",
            )
            for size in SIZES
        ),
    )
    for dtype in ("fp32", "bf16")
    for model in ("poolformer_s12", "cyclemlp_b1")
)
TABLE = (*ON_CPU, *DENSE_ON_CPU, *ON_CUDA, *BY_SIZE)
QUICK_ROUNDS = 5
QUICK_TIMM = (*TIMM, "timm channels_last frozen")
"""timm's forms of which one is its best, or near it, that compile in half a minute or so."""


def _quick(model: str, dtype: str, batch: int, *targets: float) -> Row:
    """Optimized by timm's best; where there is a second target, eager by eager too."""
    claims = (
        optimized(targets[0], QUICK_TIMM),
        *(Claim("as created", EAGER, TIMM, ratio) for ratio in targets[1:]),
    )
    return Row(model=model, device="cpu", dtype=dtype, batch=batch, subject="quick", claims=claims)


QUICK = (
    _quick("poolformer_s12", "fp32", 8, 1.1, 0.98),
    _quick("poolformer_s12", "bf16", 8, 1.15, 0.98),
    _quick("poolformer_s12", "fp32", 1, 1.08),
    _quick("poolformer_s12", "bf16", 1, 1.2),
    _quick("caformer_s18", "fp32", 8, 1.08),
    _quick("caformer_s18", "bf16", 8, 1.15),
    Row(
        model="cyclemlp_b1",
        device="cpu",
        subject="quick",
        claims=(Claim("optimized, by the deformable form", OPTIMIZED, ("deformable eager",), 4.0),),
    ),
    Row(
        model="poolformer_s12",
        device="cpu",
        mode="training",
        subject="quick",
        claims=(Claim("step as created", EAGER, TIMM, 1.2),),
    ),
    *(
        Row(
            model=model,
            device="cuda",
            dtype="bf16",
            batch=256,
            subject="quick",
            claims=(
                Claim("optimized, by timm compiled", ("ours optimized compiled",), TIMM_ON_CUDA[:3], target),
            ),
        )
        for model, target in (("poolformer_s12", 1.7), ("caformer_s18", 1.3))
    ),
)
"""What tells a user of this library, in minutes, how fast its networks are on the machine at hand."""


def grid(device: Device) -> tuple[Row, ...]:
    """Every family × {fp32, bf16} × {batch 1, 8, 64} × {inference, training}, eager and compiled."""
    modes: tuple[Mode, ...] = ("inference", "training")
    conditions = product((*TIMM_MODELS, *CYCLEMLP_MODELS, *OWN_MODELS), modes, DTYPES, BATCHES)
    return tuple(
        Row(model=model, device=device, mode=mode, dtype=dtype, batch=batch, subject="grid", claims=claims)
        for model, mode, dtype, batch in conditions
        for claims in (_claims(model, mode),)
    )


def _claims(model: str, mode: Mode) -> tuple[Claim, ...]:
    """The same form on both sides; in inference, ours may be optimized."""
    optimized = ("ours optimized",) if mode == "inference" else ()
    compiled = ("ours optimized compiled",) if mode == "inference" else ()
    eager_theirs, compiled_theirs = _theirs(model)
    return (
        Claim("eager by eager", ("ours eager", *optimized), eager_theirs),
        Claim("compiled by compiled", ("ours compiled", *compiled), compiled_theirs),
    )


def _theirs(model: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if model in TIMM_MODELS:
        return ("timm eager", "timm channels_last"), ("timm channels_last compiled",)
    if model in CYCLEMLP_MODELS:
        return ("deformable eager",), ("deformable compiled",)
    return (), ()
