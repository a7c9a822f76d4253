"""A task's network as a graph in a file, for programs without PyTorch, and the same file read back."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final, Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metaformer.data.preprocess import Channels, Deviations
from metaformer.errors import ConfigError, SizeError
from metaformer.serialize import NATURAL, POSITIVE_INT, OneOf, Range, Serializable, Text

SCHEMA: Final = 1
"""Version of `ExportCard`."""
INPUTS: Final = ("uint8", "float")
"""Kinds of input: pixels (B, H, W, 3) from 0 to 255, or normalized images (B, C, H, W)."""
PIXELS: Final = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
"""Preprocessing whose results are pixels from 0 to 255, for a graph that normalizes them itself."""
Arrays = dict[str, NDArray[Any]]
"""Inputs or outputs of a graph by name."""
_Side = Annotated[int, Range(1, 2**15, integer=True)]


@dataclass(frozen=True)
class Content(Serializable):
    """Size and hash of the part of a file that its metadata describe."""

    size: Annotated[int, NATURAL] = 0
    """In bytes."""
    sha256: Text = ""

    @classmethod
    def of(cls, data: bytes) -> Self:
        return cls(len(data), hashlib.sha256(data).hexdigest())

    def fits(self, data: bytes) -> bool:
        """Whether `data` begin with this content."""
        return len(data) >= self.size and type(self).of(data[: self.size]) == self


@dataclass(frozen=True)
class ExportCard(Serializable):
    """What an exported file says of itself: JSON under `metaformer` in its metadata, and beside the file."""

    schema: Annotated[int, POSITIVE_INT]
    task: Text | None
    """None for a backbone."""
    name: Text
    """The network's."""
    classes: tuple[Text, ...] | None
    """Class names, where they are known."""
    num_classes: Annotated[int, NATURAL]
    preprocess: dict[str, Any]
    """How an image becomes input, as checkpoints say it."""
    resize: dict[str, Any]
    """The same in words of its own, for other programs."""
    input: Annotated[str, OneOf(INPUTS)]
    channels: Annotated[int, POSITIVE_INT]
    batch: Annotated[int, POSITIVE_INT] | None
    """Images at once; None for any number."""
    image_size: tuple[_Side, _Side] | None
    """Height and width of the input; None for any."""
    min_size: _Side
    """Smallest height and width."""
    outputs: tuple[Text, ...]
    dtype: Text
    """Type that the network computes in."""
    license: Text | None = None
    """Of the weights."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the task says of its classes beside their names, such as colors or thresholds."""
    content: Content = Content()
    """Of an ONNX file up to its metadata; of OpenVINO's weights."""
    weights_sha256: Text = ""
    """Of the network's tensors."""
    versions: dict[str, Any] = field(default_factory=dict)
    """Of the programs that wrote the file."""
    parity: dict[str, Any] = field(default_factory=dict)
    """Differences from the network, as they were measured when the file was written."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names; their numbers where none are known."""
        return self.classes or tuple(map(str, range(self.num_classes)))


class Runtime(Protocol):
    """A program that computes a file's graph."""

    def run(self, inputs: Arrays) -> Arrays:
        """Outputs by name."""


class ExportGraph(nn.Module):
    """A network with the input and the outputs of its file.

    Args:
        network: the network, in evaluation mode.
        pixels: mean and standard deviation, in 0 … 1, of images that come as pixels (B, H, W, 3) from 0 to
            255; None for normalized ones (B, C, H, W).
    """

    outputs: ClassVar[tuple[str, ...]]
    """Names of its outputs."""
    takes_sizes: ClassVar[bool] = False
    """Whether it is also given `sizes` (B, 2), height and width of each image inside the padded batch."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, pixels: tuple[Channels, Deviations] | None) -> None:
        super().__init__()
        self.network = network
        self.pixels = pixels is not None
        mean, std = ((0.0,), (1.0,)) if pixels is None else pixels
        # (x / 255 − mean) / std as one multiplication and one subtraction
        self.register_buffer("scale", (1 / (255 * torch.tensor(std)))[:, None, None])
        self.register_buffer("shift", (torch.tensor(mean) / torch.tensor(std))[:, None, None])
        self.dtype = next(network.parameters()).dtype

    def normalized(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """The network's input (B, C, H, W), zero beyond each image's own size."""
        if self.pixels:
            images = images.permute(0, 3, 1, 2).float() * self.scale - self.shift
        if sizes is not None:
            images = torch.where(inside(sizes, images.shape[2], images.shape[3])[:, None], images, 0.0)
        return images.to(self.dtype)


def inside(sizes: Tensor, height: int, width: int) -> Tensor:
    """Flags (B, height, width) of the pixels of each image, of sizes (B, 2), in a padded batch."""
    rows = torch.arange(height, device=sizes.device) < sizes[:, :1]
    columns = torch.arange(width, device=sizes.device) < sizes[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


class ExportedNetwork(nn.Module):
    """A file's graph in the place of the network that it was made from.

    Args:
        runtime: computes it.
        card: what the file says.
    """

    def __init__(self, runtime: Runtime, card: ExportCard) -> None:
        super().__init__()
        self.runtime, self.card, self.num_classes = runtime, card, card.num_classes

    def compute(self, images: Tensor, sizes: Sequence[tuple[int, int]] | None = None) -> dict[str, Tensor]:
        """Outputs by name, on the CPU.

        Args:
            images: (B, C, H, W), float: pixels of 0 … 255 or normalized images, as the file takes them.
            sizes: height and width of each image inside the batch, where the graph takes them.

        Raises:
            SizeError: images of a size that the graph does not take.
            ConfigError: autocast is on, which would have no effect.
        """
        if torch.is_autocast_enabled(images.device.type):
            raise ConfigError("amp: an exported network has types of its own: leave amp out")
        self._check(images)
        pixels = images.detach().float().cpu()
        if self.card.input == "uint8":
            pixels = pixels.round().clamp_(0, 255).byte().permute(0, 2, 3, 1)
        inputs = {"images": pixels.contiguous().numpy()}
        if sizes is not None:
            inputs["sizes"] = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        return {name: torch.from_numpy(array) for name, array in self._batches(inputs).items()}

    def _check(self, images: Tensor) -> None:
        channels, *size = images.shape[1:]
        fixed = self.card.image_size
        if channels != self.card.channels or (fixed is not None and tuple(size) != fixed):
            wanted = (self.card.channels, *(fixed or ("H", "W")))
            raise SizeError(
                f"images are {tuple(images.shape[1:])}, {self.card.name}'s file takes "
                f"({', '.join(map(str, wanted))}): leave image_size out, or export it again for this size"
            )
        if min(size) < self.card.min_size:
            raise SizeError(
                f"images are {size[0]}×{size[1]} pixels: {self.card.name}'s file takes at least "
                f"{self.card.min_size}×{self.card.min_size}"
            )

    def _batches(self, inputs: Arrays) -> Arrays:
        """Outputs for any number of images, from a graph that may take a fixed number of them."""
        fixed, count = self.card.batch, len(inputs["images"])
        if fixed is None or fixed == count:
            return self.runtime.run(inputs)
        parts = []
        for first in range(0, max(count, 1), fixed):
            part = {name: array[first : first + fixed] for name, array in inputs.items()}
            missing = fixed - len(part["images"])
            filled = {
                name: np.concatenate([array, np.ones((missing, *array.shape[1:]), array.dtype)])
                for name, array in part.items()
            }
            results = self.runtime.run(filled)
            parts.append({name: array[: fixed - missing] for name, array in results.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class ExportOptions:
    """What a task's graph is made with."""

    input: Literal["uint8", "float"] = "uint8"
    max_objects: int | None = None
    """Objects of an image, at most; the network's own number by default."""
    probabilities: bool = False
    """Segmentation: also the probability of each class at each pixel."""


class TaskExport(ABC):
    """How a task's networks are exported and read back; `TaskSpec.export` is one."""

    network: type[ExportedNetwork]
    """The file's graph in the place of the network."""
    outputs: Mapping[str, str]
    """Names and shapes of the outputs, for people."""
    takes_sizes: bool = False
    """Whether the graph is also given the size of each image."""
    model_info: Mapping[str, str] = {}
    """What OpenVINO's Model API calls the networks, and how it reads their results."""
    options: frozenset[str] = frozenset()
    """Fields of `ExportOptions` that are the task's own."""
    forward_takes_sizes: bool = False
    """Whether `TaskSpec.forward` is given the size of each image, too."""
    tolerances: Mapping[str, tuple[float, float]]
    """Largest differences by name that a file may have in float32, and in float16."""

    @abstractmethod
    def graph(self, network: nn.Module, preprocess: Any, options: ExportOptions) -> ExportGraph:
        """A network with its preprocessing, as it is exported."""

    @abstractmethod
    def resize(self, preprocess: Any) -> dict[str, Any]:
        """How images are resized, for programs that know none of our classes."""

    @abstractmethod
    def read_preprocess(self, values: Mapping[str, Any]) -> Any:
        """The preprocessing of a file's card.

        Raises:
            ConfigError: a value of another type, or out of range.
        """

    def metadata(self, values: Any) -> dict[str, Any]:
        """What is known of the classes beside their names, as plain values for the card.

        Args:
            values: `LoadedModel.metadata`.
        """
        return {}

    def read_metadata(self, values: Mapping[str, Any], count: int) -> Any:
        """The same read back, for this many classes.

        Raises:
            ConfigError: values that do not fit.
        """
        return None

    def tolerance(self, name: str, dtype: str) -> float:
        """The largest difference of this name in a file of this type."""
        return self.tolerances[name][dtype == "float16"]

    def limited(self, results: Any, options: ExportOptions) -> Any:
        """What `TaskSpec.forward` gives for a batch, as far as a graph with these options gives it."""
        return results

    @abstractmethod
    def compare(self, expected: Any, found: Any) -> dict[str, float]:
        """Differences between results of the network and of its file, by the names of `tolerances`.

        Args:
            expected: what `TaskSpec.forward` gives for a batch, `limited`.
            found: the same of the file.
        """

    def agreement(self, expected: Any, found: Any) -> float:
        """Share of what both decide alike, of the same arguments: classes, pixels or objects."""
        raise NotImplementedError  # features decide nothing


def pixels_of(preprocess: Any, options: ExportOptions) -> tuple[Channels, Deviations] | None:
    """Mean and standard deviation that a graph normalizes pixels by, where it does."""
    return None if options.input == "float" else (preprocess.mean, preprocess.std)
