"""Packaged network: a network compiled ahead of time, loaded from its file."""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from metaformer.deploy.packaging.input_limits import InputLimits
from metaformer.errors import ConfigError, VersionError, WeightsError
from metaformer.serialize import Fields, Text, errors_at, parse_json
from metaformer.storage import as_path, open_zip

KEY: Final = "metaformer"
"""Key of this library's metadata among Inductor's."""
SUFFIX: Final = ".pt2"
FORMAT: Final = 1
"""Format of the metadata."""
MAX_METADATA: Final = 1 << 24
"""Bytes of metadata above which a file is refused."""
_TYPES: Final = {
    "format": int,
    "inputs": dict[str, Any],
    "outputs": tuple[Text, ...],
    "torch": Text,
    "machine": Text,
    "processor": Text,
}
X86: Final = ("DEFAULT", "AVX2", "AVX512")
"""PyTorch's names of instruction sets, each a superset of those before."""


class Packaged(nn.Module):
    """A compiled network: images (B, C, H, W) to logits, or to what a dense network's `forward_head` returns.

    Several tensors come as a dictionary with the names in `metadata["outputs"]`. A package has no parameters,
    computes no gradients, and runs on the kind of device that it was compiled for.
    """

    def __init__(self, metadata: dict[str, Any], code: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.metadata = metadata
        """Name, configuration, classes, preprocessing, versions."""
        self.limits = InputLimits.from_dict(metadata["inputs"])
        """Images that it takes."""
        self._code = code

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Run the compiled code.

        Raises:
            SizeError: a batch size, height or width outside the limits.
            ConfigError: images of another type, or on another kind of device.
        """
        self.limits.check(images)
        outputs = self._code(
            images.contiguous()
        )  # the code assumes this order in memory, whatever the strides
        names = self.metadata["outputs"]
        return outputs[0] if names == ("output",) else dict(zip(names, outputs, strict=True))


def load_package(path: str | Path, *, trusted: bool = False) -> Packaged:
    """Load a package.

    Args:
        path: the .pt2 file.
        trusted: a package holds native code, which loading runs: True if you trust its author.

    Raises:
        ConfigError: `trusted` is False, or the package is for another kind of processor or device.
        VersionError: it is in the format of another version.
        WeightsError: it is no package of this library, damaged, or of a version of PyTorch that this one
            cannot load.
    """
    metadata = read_metadata(path)
    if not trusted:
        raise ConfigError(
            f"{path}: a package holds compiled code, and loading runs it: "
            "load_package(path, trusted=True) if you trust its author"
        )
    _check_machine(path, metadata)
    from torch._inductor import aoti_load_package

    try:
        return Packaged(metadata, aoti_load_package(str(path)))
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: made by PyTorch {metadata['torch']}, and PyTorch {torch.__version__} cannot load it: "
            f"package the network again ({error})"
        ) from error


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Read a package's metadata, without running anything in it.

    Raises:
        VersionError: it is in the format of another version.
        WeightsError: it cannot be read, or is no package of this library.
    """
    path = as_path(path, "path", WeightsError)
    with open_zip(path, WeightsError, "package of metaformer") as archive:
        for entry in archive.infolist():
            if entry.filename.endswith("_metadata.json") and entry.file_size <= MAX_METADATA:
                return _decode(path, archive.read(entry))
    raise WeightsError(f"{path}: no package of metaformer")


def _decode(path: Path, text: bytes) -> dict[str, Any]:
    where = f"{path}: no package of metaformer, or damaged"
    outer = Fields.read(parse_json(text, where, WeightsError), {KEY: str}, where, WeightsError)
    types = {**_TYPES, "metaformer": Text | None}
    metadata = Fields.read(parse_json(outer[KEY], where, WeightsError), types, where, WeightsError)
    if metadata["format"] != FORMAT:
        versions = metadata["format"], metadata.get("metaformer"), FORMAT
        raise VersionError(path, *versions, kind="package", remedy="package the network again")
    with errors_at(where, WeightsError):
        InputLimits.from_dict(metadata["inputs"])
    for name in _TYPES:
        metadata[name]  # raises where it is missing
    return metadata


def machine_metadata() -> dict[str, str]:
    """What a machine must have to run code that was compiled on this one."""
    return {"machine": platform.machine(), "processor": torch.backends.cpu.get_cpu_capability()}


def _check_machine(path: str | Path, metadata: dict[str, Any]) -> None:
    """Refuse code whose instructions would crash the process here."""
    here = machine_metadata()
    theirs, ours = metadata["processor"], here["processor"]
    unsupported = theirs in X86 and ours in X86 and X86.index(theirs) > X86.index(ours)
    if metadata["machine"] != here["machine"] or unsupported:
        raise ConfigError(
            f"{path}: compiled for {metadata['machine']} {theirs}, and this is {here['machine']} {ours}: "
            "package the network on a machine like the one where it is to run"
        )
    if metadata["inputs"]["device"] == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{path}: compiled for CUDA, and there is no such device here")
