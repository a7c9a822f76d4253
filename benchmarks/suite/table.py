"""The comparisons that the library is judged by.

A contender's name says whose network it is, then what is done to it, one word after the other, then the
conditions in which it differs from its row: `ours optimized compiled bf16`.
"""

from dataclasses import replace

from benchmarks.suite.row import Claim, Row

OURS = ("ours eager", "ours optimized")
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
CONVOLUTIONS = Claim("convolutions alone, by the whole", OURS_BEST, ("ours convolutions",), 0.85)
QUICKEST = Claim("the same in their quickest forms", OURS_BEST, ("ours quickest_convolutions",), 0.85)
SHARES = (replace(CONVOLUTIONS, target=None), replace(QUICKEST, target=None))
STEPS = ("ours eager", "ours compiled")
LEAN_STEPS = ("ours lean",)
TIMM_STEPS = (*TIMM, "timm compiled", "timm channels_last compiled")
DEFORMABLE = ("deformable eager", "deformable compiled")

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
            Claim("best by best", OURS_BEST, TIMM_BEST, 1.05),
            Claim("eager by eager", OURS, TIMM, 1.05),
            CONVOLUTIONS,
            QUICKEST,
        ),
    ),
    Row(
        model="poolformer_s12",
        device="cpu",
        dtype="bf16",
        claims=(
            Claim("best by best", OURS_BEST, TIMM_BEST, 1.15),
            Claim("eager by eager", OURS, TIMM, 1.3),
        ),
    ),
    Row(
        model="poolformer_s12",
        device="cpu",
        batch=1,
        claims=(Claim("latency, best by best", OURS_BEST, TIMM_BEST, 1.08),),
    ),
    Row(
        model="poolformer_s12",
        device="cpu",
        dtype="bf16",
        batch=1,
        claims=(Claim("latency, best by best", OURS_BEST, TIMM_BEST, 1.25),),
    ),
    Row(
        model="poolformer_s12",
        device="cpu",
        mode="training",
        claims=(
            Claim("step, best by best", STEPS, TIMM_STEPS, 1.2),
            Claim("lean step, by timm's best", LEAN_STEPS, TIMM_STEPS),
            Claim(
                "peak memory of a lean step, by timm compiled",
                LEAN_STEPS,
                ("timm compiled", "timm channels_last compiled"),
                0.5,
                "memory",
            ),
        ),
    ),
    Row(
        model="convformer_s18",
        device="cpu",
        claims=(Claim("best by best", OURS_BEST, TIMM_BEST, 1.05), *SHARES),
    ),
    Row(
        model="caformer_s18",
        device="cpu",
        claims=(Claim("best by best", OURS_BEST, TIMM_BEST, 1.2), *SHARES),
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

TABLE = (*ON_CPU, *ON_CUDA, *BY_SIZE)
