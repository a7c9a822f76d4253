"""Operations of our graphs that PyTorch's exporter does not know, in ONNX.

Every function takes what its operation does and builds the same of ONNX's operators.
"""

from collections.abc import Callable
from typing import Any, Final

import torch

from metaformer.errors import MissingPackage

FLOAT, INT64 = 1, 7
"""ONNX's numbers of types."""
OPSETS: Final = range(18, 24)
"""Versions of ONNX's operators that can be asked for; PyTorch's exporter writes 18 and later ones."""


def load_onnxscript() -> tuple[Any, Any]:
    """Import onnx and onnxscript's operators.

    Raises:
        MissingPackage: they are not installed.
    """
    try:
        import onnx
        from onnxscript import opset18
    except ImportError as error:
        raise MissingPackage("onnx and onnxscript", "onnx", "an ONNX file") from error
    return onnx, opset18


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """ONNX forms of operations, as `torch.onnx.export` takes them."""
    import torchvision  # noqa: F401 - registers roi_align

    from metaformer.tasks.detection.export import NONE, select_boxes, top_candidates

    _, op = load_onnxscript()

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def number(value: float) -> Any:
        return op.Constant(value_float=value)

    def top(scores: Any, count: int) -> Any:
        return op.TopK(scores, ints(count), axis=1, largest=1, sorted=1)  # of equal ones the first

    def select(boxes: Any, scores: Any, labels: Any, iou_threshold: float, limit: int) -> Any:
        # boxes of different classes are shifted apart, as batched_nms does
        largest = op.Squeeze(op.ReduceMax(boxes, ints(1, 2), keepdims=1), ints(2))  # (B, 1)
        shift = op.Mul(op.Cast(labels, to=FLOAT), op.Add(largest, number(1.0)))  # (B, N)
        shifted = op.Add(boxes, op.Unsqueeze(shift, ints(2)))
        rows = op.Unsqueeze(scores, ints(1))  # (B, 1 class, N)
        threshold = op.Constant(value_floats=[NONE / 2])
        chosen = op.NonMaxSuppression(
            shifted, rows, ints(limit), op.Constant(value_floats=[iou_threshold]), threshold
        )  # (M, 3): image, class, box
        kept = op.ScatterND(op.Expand(number(NONE), op.Shape(rows)), chosen, op.GatherND(rows, chosen))
        padded = op.Pad(op.Squeeze(kept, ints(1)), ints(0, 0, 0, limit), number(NONE))
        best, index = op.TopK(padded, ints(limit), axis=1, largest=1, sorted=1)
        return op.Where(op.Greater(best, number(NONE / 2)), index, op.Constant(value_int=-1))

    def roi_align(
        x: Any, rois: Any, spatial_scale: float, height: int, width: int, samples: int, aligned: bool
    ) -> Any:
        images = op.Cast(op.Squeeze(op.Slice(rois, ints(0), ints(1), ints(1)), ints(1)), to=INT64)
        return op.RoiAlign(
            x,
            op.Slice(rois, ints(1), ints(5), ints(1)),
            images,
            spatial_scale=spatial_scale,
            output_height=height,
            output_width=width,
            sampling_ratio=samples,
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        )

    def adaptive_avg_pool2d(x: Any, size: Any) -> Any:
        """Cell i of n averages positions floor(i · side / n) … ceil((i + 1) · side / n) − 1: two products."""
        height, width = size
        rows = shares(op.Shape(x, start=2, end=3), height)  # (height, H)
        columns = op.Transpose(shares(op.Shape(x, start=3, end=4), width), perm=[1, 0])  # (W, width)
        return op.MatMul(op.MatMul(rows, x), columns)

    def shares(side: Any, cells: int) -> Any:
        """(cells, side): the share of each position in each cell."""
        i = op.Constant(value_ints=list(range(cells)))
        first = op.Unsqueeze(op.Div(op.Mul(i, side), ints(cells)), ints(1))
        after = op.Add(op.Mul(op.Add(i, ints(1)), side), ints(cells - 1))
        after = op.Unsqueeze(op.Div(after, ints(cells)), ints(1))
        zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
        position = op.Unsqueeze(op.Range(zero, op.Squeeze(side, ints(0)), one), ints(0))
        inside = op.And(op.GreaterOrEqual(position, first), op.Less(position, after))
        return op.Div(op.Cast(inside, to=FLOAT), op.Cast(op.Sub(after, first), to=FLOAT))

    aten = torch.ops.aten
    return {
        top_candidates._opoverload: top,
        select_boxes._opoverload: select,
        torch.ops.torchvision.roi_align.default: roi_align,
        aten._adaptive_avg_pool2d.default: adaptive_avg_pool2d,
        aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    }
