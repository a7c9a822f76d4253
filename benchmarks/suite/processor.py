"""The processor: kept to some of its instructions, and its kind in a few words."""

from collections.abc import Collection
from typing import Final

from benchmarks.suite.rows import Row

KEPT_TO: Final[dict[str, dict[str, str]]] = {
    "all": {},
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",
        "METAFORMER_CPP_ARCH": "x86-64-v3",
    },
    "avx512": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "TORCHINDUCTOR_CPP_MARCH": "x86-64-v4",
        "METAFORMER_CPP_ARCH": "x86-64-v4",
    },
}
"""Newest instructions that contenders may use -> environment of their process, `avx512` without bfloat16's.

oneDNN's variable is for PyTorch and OpenVINO, ATen's for PyTorch's own kernels and the vectors that Inductor
writes, Inductor's for the compiler of its code. A few of OpenVINO's own kernels, of norms, listen to none.
"""
NEWEST: Final = {
    "amx_bf16": "amx",
    "avx512_bf16": "avx512-bf16",
    "avx512f": "avx512",
    "avx2": "avx2",
}
"""Instructions by which kinds of processors are told apart, the newest first -> their part of the name."""
BFLOAT16: Final = frozenset(("amx_bf16", "avx512_bf16"))
"""Instructions that multiply bfloat16."""
NOISE: Final = frozenset(("r", "tm", "cpu", "processor", "cores", "core"))
"""Words in processors' names that tell nothing."""


def kind(device: str, instructions: str, kept_to: str = "all") -> str:
    """The kind of a machine, for names of files, such as `amd-epyc-avx512-bf16` or `amd-epyc-avx2-only`.

    Args:
        device: `Machine.device`.
        instructions: `Machine.instructions`.
        kept_to: a key of `KEPT_TO`.
    """
    name = device.rpartition(":")[2].partition("@")[0].partition(",")[0]
    words = "".join(letter if letter.isalnum() else " " for letter in name.lower()).split()
    newest = next((part for flag, part in NEWEST.items() if flag in instructions.split()), "")
    limit = newest if kept_to == "all" else f"{kept_to}-only"
    return "-".join(filter(None, (*(word for word in words if word not in NOISE), limit)))


def possible(row: Row, kept_to: str, processor: Collection[str]) -> Row | None:
    """A row without claims in bfloat16 where a CPU's contenders cannot multiply it; None where none is left.

    Args:
        row: the row.
        kept_to: a key of `KEPT_TO`, of which only `all` has instructions for bfloat16.
        processor: the processor's instructions.
    """
    if row.device == "cuda" or (kept_to == "all" and not BFLOAT16.isdisjoint(processor)):
        return row
    names = [(claim, (row.dtype, *" ".join((*claim.ours, *claim.theirs)).split())) for claim in row.claims]
    claims = tuple(claim for claim, words in names if not {"bf16", "autocast"} & set(words))
    return row.with_claims(claims) if claims else None
