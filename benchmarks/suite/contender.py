"""From a contender's name to something that can be timed."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.suite.ceilings import CEILINGS
from benchmarks.suite.forms import FORMS, Form
from benchmarks.suite.row import Row
from benchmarks.suite.sides import SIDES, build
from metaformer.bench.run import DTYPES
from metaformer.bench.timing import TrainingStep
from metaformer.errors import ConfigError, UnknownName

TOLERANCE = {"fp32": 1e-2, "bf16": 0.1, "fp16": 0.1}
"""Largest difference of two logits, by the largest logit: far above rounding, far below another network."""
COMPARED = 8
"""Images of a batch whose logits are compared."""
SILENT = ("convolutions", "quickest_convolutions")
"""Forms that give no logits."""


@dataclass(frozen=True)
class Contender:
    """Whose network, in which form, under which conditions."""

    side: str
    forms: tuple[str, ...]
    dtype: str
    size: int

    @classmethod
    def read(cls, name: str, row: Row) -> "Contender":
        """Understand `SIDE FORM … [DTYPE] [SIZE]`; what is not said is the row's.

        Raises:
            UnknownName: a word that is nothing of these.
        """
        side, *words = name.split()
        if side not in SIDES:
            raise UnknownName("side of a contender", side, SIDES)
        forms, dtype, size = [], row.dtype, row.size
        for word in words:
            if word in DTYPES:
                dtype = word
            elif word.isdecimal():
                size = int(word)
            elif word in FORMS:
                forms.append(word)
            else:
                raise UnknownName("form of a contender", word, [*FORMS, *DTYPES])
        return cls(side, tuple(forms), dtype, size)


@dataclass(frozen=True)
class Ready:
    """What is timed."""

    module: nn.Module
    images: Tensor
    difference: float | None = None
    """Largest difference of its logits from the plain network's in float32, by the largest of these."""


def prepare(name: str, row: Row) -> Ready:
    """Build a contender, compile it, run it once, and see that it computes what its network does.

    Raises:
        ConfigError: it computes something else; a package is missing.
        Exception: whatever compilers and other libraries raise.
    """
    device = torch.device(row.device)
    if name.rpartition(" ")[0] in CEILINGS:
        kind, _, dtype = name.rpartition(" ")
        return Ready(CEILINGS[kind](device, DTYPES[dtype]), torch.empty(1, device=device))
    contender = Contender.read(name, row)
    form = _formed(contender, row, device)
    if row.mode == "training":
        step = TrainingStep(form.network)
        step(form.images)
        return Ready(step, form.images)
    with torch.inference_mode():
        logits = form.network(form.images)
    if set(contender.forms) & set(SILENT):
        return Ready(form.network, form.images)
    return Ready(form.network, form.images, _difference(logits, contender, row))


def _formed(contender: Contender, row: Row, device: torch.device) -> Form:
    dtype = DTYPES[contender.dtype]
    network = build(contender.side, row.model, contender.size).train(row.mode == "training")
    network = network.to(device) if "optimized" in contender.forms else network.to(device, dtype)
    form = Form(network, _images(row.batch, contender.size).to(device, dtype))
    for word in contender.forms:
        form = FORMS[word](form)
    return form


def _images(batch: int, size: int) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def _difference(logits: Tensor, contender: Contender, row: Row) -> float:
    plain = _plain_logits(contender.side, row.model, contender.size, row.batch)
    difference = float((logits[:COMPARED].float().cpu() - plain).abs().max() / plain.abs().max())
    if not difference <= TOLERANCE[contender.dtype]:
        raise ConfigError(f"computes something else: its logits differ by {difference:.1%} of the largest")
    return difference


@cache
def _plain_logits(side: str, model: str, size: int, batch: int) -> Tensor:
    """Logits of a batch's first images by the network as it is created, on the CPU, in float32."""
    network = build(side, model, size).eval()
    with torch.inference_mode():
        logits: Tensor = network(_images(batch, size)[:COMPARED])
    return logits
