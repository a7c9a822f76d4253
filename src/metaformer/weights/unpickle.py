"""Read PyTorch's pickled files without importing or running anything that is named in them."""

import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from metaformer.errors import WeightsError
from metaformer.storage import open_regular, open_zip

ROOM, SLACK = 4, 1 << 20
"""An archive may unpack to so many times its size, and so many bytes more; PyTorch does not compress."""
_NESTED = 8
_LONGEST_NAME = 500
OF_TENSORS = (
    *("torch._utils._rebuild_", "torch._tensor._rebuild_from_type_v2", "torch.nn.parameter.Parameter"),
    *("torch.storage.", "torch.serialization._get_layout", "torch.Size", "torch.Tensor", "torch.device"),
    *("collections.OrderedDict", "collections.Counter", "_codecs.encode", "builtins.set", "__builtin__.set"),
)
"""Prefixes of the names that files of tensors hold; PyTorch checks each of them."""


DTYPES = frozenset(name for name in vars(torch) if isinstance(getattr(torch, name), torch.dtype))


class Inert:
    """Placeholder for an object of a foreign class; it takes any arguments and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __new__(cls, *args: object, **kwargs: object) -> "Inert":
        """Ignore the arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class InertList:
    """Placeholder for a subclass of list."""

    def __new__(cls, *args: object) -> list[Any]:  # type: ignore[misc]  # PyTorch fills plain lists only
        """Make an empty list."""
        return []


class InertDict:
    """Placeholder for a subclass of dict."""

    def __new__(cls, *args: object) -> dict[Any, Any]:  # type: ignore[misc]  # PyTorch fills plain dictionaries only
        """Make an empty dictionary."""
        return {}


PLACEHOLDERS: dict[str, type] = {
    "collections.deque": InertList,
    "collections.defaultdict": InertDict,
    **dict.fromkeys(
        (
            "argparse.Namespace",  # CycleMLP, DeiT and timm keep their command line beside the tensors
            "mmengine.logging.history_buffer.HistoryBuffer",  # mmengine keeps its log there
            "mmengine.logging.HistoryBuffer",
            "numpy.dtype",
            "numpy.ndarray",
            "numpy.core.multiarray._reconstruct",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray._reconstruct",
            "numpy._core.multiarray.scalar",
            "pathlib.PosixPath",
            "pathlib.WindowsPath",
            "pathlib._local.PosixPath",
            "datetime.datetime",
            "datetime.timedelta",
            "builtins.int",
            "builtins.float",
            "builtins.str",
            "builtins.list",
            "builtins.dict",
            "torch.torch_version.TorchVersion",
        ),
        Inert,
    ),
}
"""Classes named in published training files beside their tensors, and what replaces them."""


def load_pickled(path: Path) -> Any:
    """Read a file of `torch.save`, in the zip or the older form: tensors and plain containers only.

    Objects of the classes in `PLACEHOLDERS` are empty; any other class or function is refused.

    Raises:
        WeightsError: the file names code, is damaged, or would unpack to far more than its size.
    """
    _refuse_bomb(path)
    _refuse_slow(path)
    try:
        with (
            torch.serialization.safe_globals(
                [(placeholder, name) for name, placeholder in PLACEHOLDERS.items()]
            ),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # about the storages of old files
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch has no class of its own for damaged files
        code = sorted(_foreign_names(path))
        if code:
            raise WeightsError(
                f"{path}: refused, the file wants to run or make {', '.join(code[:3])}, which weights do not "
                "need; nothing was run. Where you trust it, save the tensors alone: "
                "torch.save(model.state_dict(), FILE)"
            ) from error
        text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
        reason = text.partition("\n")[0][:200] or type(error).__name__
        raise WeightsError(f"{path}: damaged, or not of PyTorch ({reason}); fetch it again") from error
    return loaded


def _refuse_bomb(path: Path) -> None:
    """Refuse a zip that declares far more than its size."""
    with open_regular(path, WeightsError) as file:
        if file.read(4) != b"PK\x03\x04":
            return
    with open_zip(path, WeightsError) as archive:
        declared = sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    if declared > ROOM * size + SLACK:
        raise WeightsError(
            f"{path}: refused, its {size:,} bytes would unpack to {declared:,}; PyTorch does not compress"
        )


def _refuse_slow(path: Path) -> None:
    """Refuse what would keep PyTorch busy forever."""
    found = ""
    with suppress(Exception):  # of a damaged program, which PyTorch runs until there and then reports
        found = next((text for program in _programs(path) for text in _slow_parts(program)), "")
    if found:
        raise WeightsError(f"{path}: refused, {found}, which no weights need")


def _slow_parts(program: "BinaryIO | Any") -> Iterator[str]:
    """What in a pickle program would take forever; it is followed, not run.

    To hash a tuple of tuples of tuples takes forever where each holds its part twice. And PyTorch searches
    its error in a time that is the square of the length of a name in it.
    """
    stack, marks, memo = [0], [0], dict[object, int]()  # the depth of each object
    lengths = [0, 0]  # of the last two texts
    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if isinstance(argument, str):
            lengths = [lengths[1], len(argument)]
        if name in ("GLOBAL", "INST") and lengths[1] > _LONGEST_NAME:
            yield f"it names a class of {lengths[1]:,} characters"
        if name == "STACK_GLOBAL" and max(lengths) > _LONGEST_NAME:
            yield f"it names a class of {max(lengths):,} characters"
        if name == "MARK":
            marks.append(len(stack))
        elif name == "MEMOIZE" or name.endswith("PUT"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1] if stack else 0
        elif name.endswith("GET"):
            stack.append(memo.get(argument, 0))
        elif name == "DUP":
            stack.append(stack[-1] if stack else 0)
        else:
            marked = any(part is pickletools.markobject for part in opcode.stack_before)
            taken = len(stack) - marks.pop() if marked and marks else len(opcode.stack_before)
            taken += opcode.stack_before.index(pickletools.markobject) if marked else 0
            parts = stack[max(0, len(stack) - taken) :]
            del stack[max(0, len(stack) - taken) :]
            depth = 1 + max(parts, default=0) if "TUPLE" in name else 0
            if depth > _NESTED:
                yield f"tuples are nested over {_NESTED} deep"
            stack += [depth] * len(opcode.stack_after)


def _foreign_names(path: Path) -> set[str]:
    """What the file's pickle programs would import beyond tensors and placeholders; they are not run."""
    names: set[str] = set()
    with suppress(Exception):  # damaged from here on: what was found until then counts
        for program in _programs(path):
            _disassemble(program, names)
    return {name for name in names if name not in PLACEHOLDERS and not _of_tensors(name)}


def _programs(path: Path) -> Iterator["BinaryIO | Any"]:
    """The file's pickle programs, to be read one after another; nothing more where it is damaged."""
    with suppress(Exception), path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                for entry in archive.namelist():
                    if entry.endswith(".pkl"):
                        with archive.open(entry) as program:
                            yield program
        else:
            file.seek(0)
            for _ in range(5):  # the older form: magic number, protocol, machine, object, storage keys
                yield file


def _of_tensors(name: str) -> bool:
    """Whether any file of tensors may hold this name."""
    kind = name.removeprefix("torch.")
    of_torch = name.startswith("torch.") and (kind.endswith("Storage") or kind in DTYPES)
    return of_torch or name.startswith(OF_TENSORS)


def _disassemble(program: "BinaryIO | Any", names: set[str]) -> None:
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(strings[-2:]))
        elif "UNICODE" in opcode.name:
            strings.append(str(argument))
