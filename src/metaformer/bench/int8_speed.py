"""Time of an int8 network beside the optimised network that it was made of."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from metaformer.bench.timing import Machine, Timing, measure, ratios
from metaformer.deploy.optimize import optimize

FORMS = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Int8Speed:
    """Rounds in which float32, bfloat16 (both optimised) and int8 came in turn."""

    machine: Machine
    timings: dict[int, tuple[Timing, ...]]
    """By images at once, one for each of `FORMS`."""

    def text(self) -> str:
        """Make a table: milliseconds an image in the quickest round, and how many times as fast int8 is."""
        lines = [
            f"{self.machine.device}, {self.machine.threads} threads; milliseconds an image, quickest round"
        ]
        lines.append(
            "batch" + "".join(f"{form:>10}" for form in FORMS) + "  int8 is, in the median of rounds"
        )
        for batch, row in self.timings.items():
            figures = "".join(f"{timing.minimum * 1000 / batch:>10.2f}" for timing in row)
            *others, small = row
            times = (
                f"{median(ratios(small, other)):.2f} × {form}"
                for form, other in zip(FORMS, others, strict=False)
            )
            lines.append(f"{batch:<5}{figures}  {', '.join(times)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: seconds a batch, round by round."""
        rows = {
            str(batch): {form: timing.seconds for form, timing in zip(FORMS, row, strict=True)}
            for batch, row in self.timings.items()
        }
        return {"machine": asdict(self.machine), "seconds": rows}


def measure_int8(network: nn.Module, small: nn.Module, batches: Sequence[int], rounds: int) -> Int8Speed:
    """Time both on the CPU, on random images of the int8 network's size.

    Args:
        network: a classifier of this library.
        small: the same in int8, with `in_chans` and `image_size`.
        batches: images at once.
        rounds: measurements of each.
    """
    networks = [optimize(network), optimize(network, dtype=torch.bfloat16), small]
    timings = {}
    for batch in batches:
        images = torch.randn(batch, small.in_chans, *small.image_size)  # type: ignore[call-overload, misc]
        laid = images.to(memory_format=torch.channels_last)
        timings[batch] = tuple(measure(networks, [laid, laid.bfloat16(), images], rounds=rounds))
    return Int8Speed(Machine.here(torch.device("cpu")), timings)
