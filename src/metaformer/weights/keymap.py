"""Recognize a checkpoint's format by its keys, and rename and reshape its tensors, both ways."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metaformer.errors import UnknownName, WeightsError
from metaformer.ops.cycle import staircase
from metaformer.weights.adapt import refuse_torchvision
from metaformer.weights.formats import FORMATS, POINTWISE, Format
from metaformer.weights.infer import candidates

State = dict[str, Tensor]
AVERAGED = "n_averaged"
"""Counter that `torch.optim.swa_utils.AveragedModel` keeps beside its `module.`."""
WRAPPINGS = ("module.", "_orig_mod.")
"""Prefixes of DistributedDataParallel and torch.compile."""
BACKBONE = "backbone."
"""Prefix of the backbone's names in a network on a backbone."""
KINDS = ("net", "down", "pos", "last", "extra")
"""Placeholders of positions."""
FIRST_EXTRA = 6
"""The number of a pyramid's first output beyond its levels, P6."""


@dataclass(frozen=True)
class Positions:
    """Which positions of the originals' one list hold which stage's blocks, downsampling and embedding.

    `levels` is how many levels a pyramid has, behind which its further outputs are counted on.
    """

    blocks: tuple[int, ...]
    levels: int = 0
    down: Mapping[int, int] = field(default_factory=dict)
    pos: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of_foreign(cls, keys: Iterable[str]) -> "Positions":
        """Read it from keys such as `network.0.1.norm1.weight`: lists of blocks have a number next."""
        entries = [key.removeprefix(BACKBONE).split(".") for key in keys]
        blocks = {
            int(e[1])
            for e in entries
            if e[0] == "network" and len(e) > 2 and e[1].isdecimal() and e[2].isdecimal()
        }
        return cls(tuple(sorted(blocks)), _numbers(entries, "neck", "lateral_convs"))

    @classmethod
    def of_ours(cls, keys: Iterable[str]) -> "Positions":
        """Lay our stages out as the originals' list does."""
        names = [key.removeprefix(BACKBONE) for key in keys]
        entries = [name.split(".") for name in names]
        parts = {(e[1], e[2]) for e in entries if e[0] == "stages" and len(e) > 2 and e[1].isdecimal()}
        blocks, down, pos, position = [], {}, {}, 0
        for stage in range(1 + max((int(number) for number, _ in parts), default=-1)):
            if (str(stage), "downsample") in parts:
                down[stage], position = position, position + 1
            if (str(stage), "pos_embed") in parts:
                pos[stage], position = position, position + 1
            blocks.append(position)
            position += 1
        levels = _numbers((name.split(".") for name in names), "neck", "laterals")
        return cls(tuple(blocks), levels, down, pos)

    def stage(self, kind: str, position: int) -> int:
        """The stage that an entry of the list belongs to: as many lists of blocks stand before it."""
        if kind == "extra":
            return FIRST_EXTRA + position - self.levels
        return sum(other < position for other in self.blocks)

    def fits(self, kind: str, position: int) -> bool:
        """Whether a placeholder may be at this position."""
        if kind == "extra":
            return position >= self.levels
        if kind == "last":
            return position == max(self.blocks, default=-1)
        return (position in self.blocks) == (kind == "net")

    def position(self, kind: str, stage: int) -> int | None:
        """The inverse of `stage`, for each kind of entry."""
        if kind == "last":
            return max(self.blocks, default=None)
        if kind == "net":
            return self.blocks[stage] if stage < len(self.blocks) else None
        if kind == "extra":
            return self.levels + stage - FIRST_EXTRA
        return (self.down if kind == "down" else self.pos).get(stage)


@dataclass
class Renamed:
    """A foreign state in our names."""

    format: str
    """Key of the format that it was recognized as."""
    state: State = field(default_factory=dict)
    """Tensors by our names; products over channels are (out, in, 1, 1)."""
    origin: dict[str, str] = field(default_factory=dict)
    """The name that each had in the file."""
    ignored: list[str] = field(default_factory=list)
    """Names in the file that are known and not needed: fixed offsets, other networks' parts."""
    unknown: list[str] = field(default_factory=list)
    """Names in the file that the format does not have."""

    @property
    def dense(self) -> bool:
        """Whether it is of a network on a backbone."""
        return FORMATS[self.format].dense

    def backbone(self) -> "Renamed":
        """The backbone alone, under the names that it has by itself; other parts are left out."""
        if not self.dense:
            return self
        own = {name: name.removeprefix(BACKBONE) for name in self.state if name.startswith(BACKBONE)}
        return Renamed(
            self.format,
            {bare: self.state[name] for name, bare in own.items()},
            {bare: self.origin[name] for name, bare in own.items()},
            self.ignored + [key for name, key in self.origin.items() if name not in own] + self.unknown,
        )


def recognize(keys: Iterable[str]) -> str:
    """Recognize the format of a checkpoint by its keys.

    Raises:
        WeightsError: no format has such keys.
    """
    names = list(keys)
    for name, form in FORMATS.items():
        if _has(form, names):
            return name
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    known = "; ".join(form.title for form in FORMATS.values())
    raise WeightsError(f"the names in it ({shown}) are of no known format: {known}")


def _has(form: Format, keys: Iterable[str]) -> bool:
    """Whether keys match the signs of a format."""
    names = list(keys)
    needed, one_of = (
        [any(_match(sign, key) is not None for key in names) for sign in signs]
        for signs in (form.signs, form.any_sign)
    )
    return all(needed) and (any(one_of) or not one_of)


def to_ours(state: Mapping[str, Tensor], format_name: str | None = None) -> Renamed:
    """Rename a checkpoint's tensors to ours, its format recognized by its keys.

    Raises:
        WeightsError: no format has such keys, or two keys mean the same tensor.
    """
    state, outside = unwrapped(state)
    if format_name is None:
        format_name = recognize(state)
        if format_name == "timm" and _is_ours(state):
            format_name = "metaformer"
    form, positions = FORMATS[format_name], Positions.of_foreign(state)
    renamed = Renamed(format_name, ignored=outside)
    for key, value in state.items():
        name = _translate(key, form, positions)
        if name is None and form.dense and key.startswith(BACKBONE):
            name = key  # of a foreign backbone, whose names are its own
        if name is None:
            renamed.unknown.append(key)
        elif not name:
            renamed.ignored.append(key)
        elif name in renamed.state:
            raise WeightsError(f"{renamed.origin[name]} and {key} both mean {name}")
        else:
            renamed.state[name], renamed.origin[name] = _as_product(name, value), key
    return renamed


def from_ours(state: Mapping[str, Tensor], format_name: str, *, kernel: int = 3) -> State:
    """Rename and reshape our tensors as `format_name` has them; CycleFC's offset buffers are computed.

    Args:
        state: tensors by our names.
        format_name: key of `FORMATS`; of one with dialects that of the network is taken.
        kernel: CycleFC's kernel, which only the offsets depend on.

    Raises:
        UnknownName: no such format.
        WeightsError: a tensor that the format has no place for.
    """
    if format_name not in FORMATS:
        raise UnknownName("checkpoint format", format_name, FORMATS)
    if format_name == "mmdetection":
        refuse_torchvision(state)
    form, positions, out = _dialect(state, format_name), Positions.of_ours(state), State()
    convolutional = any(name.startswith(form.convolutional) for name in candidates(state))
    for name, value in state.items():
        key = _foreign(name, form, positions)
        if key is None:
            raise WeightsError(f"{name} has no place in the format {format_name!r} ({form.title})")
        matrix = not convolutional and _is_matrix(name, value, form, state)
        out[key] = value.flatten(1) if matrix else value
        if any(theirs.endswith(".sfc_h.offset") for theirs, _ in form.rules):
            out |= _offset(key, value, kernel)
    if not _has(form, out):
        raise WeightsError(f"such a network has no place in the format {format_name!r} ({form.title})")
    return out


def unwrapped(state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], list[str]]:
    """The network's tensors without what wraps them, and the names in the file of other tensors.

    `module.` and `_orig_mod.` are removed if every name begins with it, but for the counter of
    `AveragedModel`. Where the names are then of no format, the network is an attribute of a training module,
    as in Lightning's checkpoints: `model.` or the only other one whose names are of a format.

    Raises:
        WeightsError: several attributes are networks, none of them `model`.
    """
    names, outside = {key: key for key in state}, list[str]()
    while names:
        if AVERAGED in names and any(key.startswith("module.") for key in names):
            outside.append(names.pop(AVERAGED))
        prefix = next((p for p in WRAPPINGS if all(key.startswith(p) for key in names)), None)
        if prefix is None:
            prefix = _attribute(names)
        if prefix is None:
            break
        outside += [original for key, original in names.items() if not key.startswith(prefix)]
        names = {key.removeprefix(prefix): own for key, own in names.items() if key.startswith(prefix)}
    return {key: state[original] for key, original in names.items()}, outside


def _attribute(names: Collection[str]) -> str | None:
    """Prefix of the network among a training module's attributes; None if the names are a network's own."""
    if any(_has(form, names) for form in FORMATS.values()):
        return None
    parts: dict[str, list[str]] = {}
    for key in names:
        first, dot, rest = key.partition(".")
        if dot:
            parts.setdefault(first, []).append(rest)
    networks = [first for first, keys in parts.items() if _is_network(keys)]
    if len(networks) > 1 and "model" not in networks:
        raise WeightsError(
            f"several networks ({', '.join(networks)}): load the tensors of one, without its name before them"
        )
    return f"{'model' if 'model' in networks else networks[0]}." if networks else None


def _is_network(keys: Collection[str]) -> bool:
    """Whether names are of a format, perhaps below wrappings."""
    while keys and (prefix := next((p for p in WRAPPINGS if all(k.startswith(p) for k in keys)), None)):
        keys = [key.removeprefix(prefix) for key in keys]
    inner = [key.removeprefix("module.") for key in keys if key != AVERAGED]
    return any(_has(form, inner) for form in FORMATS.values())


def _match(template: str, key: str) -> dict[str, str] | None:
    """The values of a template's placeholders in a key, or None where it does not fit."""
    values: dict[str, str] = {}
    parts, wanted = key.split("."), template.split(".")
    if wanted[-1] == "*":
        wanted.pop()
        if len(parts) <= len(wanted):
            return None
        parts, values["*"] = parts[: len(wanted)], ".".join(parts[len(wanted) :])
    if len(parts) != len(wanted):
        return None
    for want, part in zip(wanted, parts, strict=True):
        literal, brace, name = want.partition("{")
        number = part.removeprefix(literal)
        if not brace:
            if want != part:
                return None
        elif part.startswith(literal) and number.isdecimal():
            values[name.rstrip("}")] = number
        else:
            return None
    return values


def _fill(template: str, values: Mapping[str, str]) -> str:
    """A template with its placeholders filled in."""
    for name, value in values.items():
        template = template.replace("*" if name == "*" else f"{{{name}}}", value)
    return template


def _translate(key: str, form: Format, positions: Positions) -> str | None:
    """Our name of a foreign key; empty for what is left out, None for what the format does not have."""
    for theirs, ours in form.rules:
        values = _match(theirs, key)
        if values is None:
            continue
        kind = next((kind for kind in KINDS if kind in values), None)
        if kind is not None:
            if not positions.fits(kind, int(values[kind])):
                continue
            values["stage"] = str(positions.stage(kind, int(values[kind])))
        return "" if ours is None else _fill(ours, values)
    return None


def _dialect(state: Mapping[str, Tensor], format_name: str) -> Format:
    """The dialect of a format that has a place for each of our names; the format itself without one."""
    positions = Positions.of_ours(state)
    for form in FORMATS.values():
        if form.dialect_of == format_name:
            keys = [_foreign(name, form, positions) for name in state]
            if all(keys) and _has(form, filter(None, keys)):
                return form
    return FORMATS[format_name]


def _foreign(name: str, form: Format, positions: Positions) -> str | None:
    """A format's key for our name, or None where it has no place for it."""
    keys = (_rewrite(ours, theirs, name, positions) for theirs, ours in form.rules if ours)
    return next(filter(None, keys), None)


def _rewrite(ours: str, theirs: str, name: str, positions: Positions) -> str | None:
    """The foreign key of our name by one rule, or None where the rule is not about it."""
    values = _match(ours, name)
    if values is None:
        return None
    kind = next((kind for kind in KINDS if f"{{{kind}}}" in theirs), None)
    if kind is not None:
        position = positions.position(kind, int(values.get("stage", -1)))
        if position is None:
            return None
        values[kind] = str(position)
    return _fill(theirs, values)


def _as_product(name: str, value: Tensor) -> Tensor:
    """A matrix over channels as the (out, in, 1, 1) that it is here."""
    return value[:, :, None, None] if value.ndim == 2 and _in_block(name, POINTWISE) else value


def _in_block(name: str, ends: tuple[str, ...]) -> bool:
    name = name.removeprefix(BACKBONE)
    return name.startswith("stages.") and name.split(".", 4)[-1] in ends


def _is_matrix(name: str, value: Tensor, form: Format, state: Mapping[str, Tensor]) -> bool:
    if value.ndim != 4 or value.shape[2:] != (1, 1) or not _in_block(name, form.matrices):
        return False
    if not form.matrices_with:
        return True
    stage = name.split(".blocks.")[0] + "."
    return any(key.startswith(stage) and key.endswith(form.matrices_with) for key in state)


def _is_ours(state: Mapping[str, Tensor]) -> bool:
    """Whether a state is ours and not timm's: the same names, but matrices in attention stages."""
    return not any(value.ndim == 2 and _in_block(key, POINTWISE) for key, value in state.items())


def _offset(key: str, weight: Tensor, kernel: int) -> State:
    """The fixed sampling offsets beside an original CycleFC's weight, (1, 2·C, 1, 1): down, right, …."""
    part = next((part for part in ("sfc_h", "sfc_w") if key.endswith(f".{part}.weight")), None)
    if part is None:
        return State()
    steps = torch.tensor(staircase(kernel), dtype=torch.float32)
    offset = torch.zeros(weight.shape[1], 2)
    # the published names are swapped: sfc_h samples along the width
    offset[:, 1 if part == "sfc_h" else 0] = steps[torch.arange(weight.shape[1]) % kernel]
    return State({key.removesuffix("weight") + "offset": offset.reshape(1, -1, 1, 1)})


def _numbers(entries: Iterable[list[str]], *before: str) -> int:
    """How many different parts stand behind these first parts of names."""
    return len({tuple(e[: len(before) + 1]) for e in entries if tuple(e[: len(before)]) == before})
