"""A network that was compiled ahead of time, read from its package."""

import json
import platform
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from metaformer.deploy.packaging.input_limits import InputLimits
from metaformer.errors import ConfigError, WeightsError

KEY: Final = "metaformer"
"""Under which Inductor keeps our notes."""
SUFFIX: Final = ".pt2"
FORMAT: Final = 1
"""Of the notes; readers refuse others."""
LARGEST_NOTES: Final = 1 << 24
"""Bytes; more is no package of ours."""
X86: Final = ("DEFAULT", "AVX2", "AVX512")
"""PyTorch's words for a processor's instructions; each has those of the words before it."""


class Packaged(nn.Module):
    """A compiled network: images (B, C, H, W) to what its `forward_head` gave, or its logits.

    It gives one tensor as it is, more as a dictionary with the names in `metadata["outputs"]`. It has no
    parameters, keeps no gradients, and stays on the device that it was made for.
    """

    def __init__(self, metadata: dict[str, Any], code: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.metadata = metadata
        """What `package` noted: name, configuration, classes, preprocessing, versions."""
        self.limits = InputLimits.from_dict(metadata["inputs"])
        """Which images it takes."""
        self._code = code

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Run the compiled code.

        Raises:
            SizeError: images of a number or size that it was not made for.
            ConfigError: images of another type, or on another kind of device.
        """
        self.limits.check(images)
        outputs = self._code(images.contiguous())  # the code reads memory in this order, whatever the strides
        names = self.metadata["outputs"]
        return outputs[0] if names == ["output"] else dict(zip(names, outputs, strict=True))


def load_package(path: str | Path, *, trusted: bool = False) -> Packaged:
    """Load what `package` wrote.

    Args:
        path: the .pt2 file.
        trusted: a package holds native code, which loading runs: say that you trust its maker.

    Raises:
        ConfigError: not said to be trusted, or made for another kind of processor or device.
        WeightsError: no package of this library, or one that this version of PyTorch cannot load.
    """
    metadata = read_metadata(path)
    if not trusted:
        raise ConfigError(
            f"{path}: a package holds compiled code, and loading runs it: "
            "load_package(path, trusted=True) where you trust whoever made it"
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
    """Read what `package` noted; nothing in the file is run.

    Raises:
        WeightsError: no such file, or no package of this library.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith("_metadata.json") and entry.file_size <= LARGEST_NOTES:
                    return _notes(json.loads(archive.read(entry)))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: no package of metaformer, or damaged ({error})") from error
    raise WeightsError(f"{path}: no package of metaformer")


def _notes(kept: dict[str, str]) -> dict[str, Any]:
    notes = json.loads(kept[KEY])
    if notes["format"] != FORMAT:
        raise ValueError(f"of format {notes['format']}; this version reads {FORMAT}")
    return dict(notes)


def machine_notes() -> dict[str, str]:
    """What a machine must be like to run code that was compiled on this one."""
    return {"machine": platform.machine(), "processor": torch.backends.cpu.get_cpu_capability()}


def _check_machine(path: str | Path, metadata: dict[str, Any]) -> None:
    """Refuse code with instructions that would end the process here."""
    here = machine_notes()
    theirs, ours = metadata["processor"], here["processor"]
    lacking = theirs in X86 and ours in X86 and X86.index(theirs) > X86.index(ours)
    if metadata["machine"] != here["machine"] or lacking:
        raise ConfigError(
            f"{path}: compiled for {metadata['machine']} {theirs}, and this is {here['machine']} {ours}: "
            "package the network on a machine like the one where it shall run"
        )
    if metadata["inputs"]["device"] == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{path}: compiled for CUDA, and there is no such device here")
