"""What comes from a disk is decoded by type, range and size before anything is done with it."""

import io
import json
import os
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import metaformer
from faults import mutate
from faults.doors import BACKBONE, DOORS
from metaformer.backbones.config import MAX_BLOCKS
from metaformer.checkpoint.runs import find_runs
from metaformer.config import DataConfig
from metaformer.data.class_lists import MAX_CLASSES, given_names
from metaformer.data.folder import ImageFolder
from metaformer.errors import ConfigError, DataError, MetaFormerError, OutputError, WeightsError
from metaformer.models.build import build_network, check_pass
from metaformer.tasks.stream import ImageList
from metaformer.weights.convert import convert
from toys import gray_png

SOON = 2.0
"""Seconds until an error."""


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """The error of a door whose file was changed; it comes soon and names the file."""

    def error_of(
        name: str, change: Callable[[Path], object], kind: type[MetaFormerError] = MetaFormerError
    ) -> str:
        door = DOORS[name]
        change(door.write(tmp_path))
        door.changed(tmp_path)
        started = time.perf_counter()
        with pytest.raises(kind) as caught:
            door.enter(tmp_path)
        seconds, text = time.perf_counter() - started, str(caught.value)
        if seconds > SOON:  # the machine may be busy, or a module was imported
            started = time.perf_counter()
            with pytest.raises(kind):
                door.enter(tmp_path)
            seconds = time.perf_counter() - started
        assert seconds <= SOON and str(tmp_path) in text, (seconds, text)
        text.encode()
        return text

    return error_of


def put(path: str, value: Any) -> Callable[[Path], object]:
    """Change one value of a JSON file; its place is written with dots."""

    def change(file: Path) -> None:
        document = json.loads(file.read_text())
        *above, last = path.split(".")
        place = document
        for key in above:
            place = place[int(key) if isinstance(place, list) else key]
        place[int(last) if isinstance(place, list) else last] = value
        file.write_text(json.dumps(document))

    return change


def write(content: str | bytes) -> Callable[[Path], object]:
    """Write another content into the file."""
    return lambda file: file.write_bytes(content.encode() if isinstance(content, str) else content)


NO_NUMBERS = (None, [], {}, "x", [1], True, float("nan"), float("inf"), 1e9, 10**400, -1)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: str(value)[:8])
@pytest.mark.parametrize(
    ("door", "field"),
    [
        ("checkpoint card (classify)", "card.preprocess.image_size"),
        ("checkpoint card (segment)", "card.model.fpn_dim"),
        ("checkpoint card (detect)", "card.preprocess.long_side"),
        ("config.json of ours (classify)", "config.stem_kernel"),
        ("config.json of transformers", "num_channels"),
        ("index of tar shards", "splits.train.0.images"),
    ],
)
def test_a_number_is_a_finite_number_in_range(
    door: str, field: str, value: Any, refused: Callable[..., str]
) -> None:
    if value is None and field.endswith("long_side"):
        value = "null"  # a missing side has a meaning
    assert field.rpartition(".")[2] in refused(door, put(field, value))


@pytest.mark.parametrize(
    ("door", "field", "value", "words"),
    [
        ("checkpoint card (classify)", "card", [1], "card"),
        ("checkpoint card (classify)", "card.task", [], "task"),
        ("checkpoint card (classify)", "card.name", {}, "name"),
        ("checkpoint card (classify)", "config.optim", "x", "optim"),
        ("checkpoint card (classify)", "card.classes", ["ant"], "1 names, but the network has 3 outputs"),
        ("checkpoint card (detect)", "card.classes", ["ant", "bee"], "2 names, but the network has 3"),
        ("checkpoint card (classify)", "card.classes", ["ant", None, 3], "classes"),
        ("checkpoint card (classify)", "card.classes", ["ant", "b\nee", "cat"], "classes"),
        ("checkpoint card (classify)", "card.classes", ["ant", "\ud800", "cat"], "classes"),
        ("checkpoint card (segment)", "card.palette", [[1, 2], [3, 4], [5, 6]], "palette"),
        ("checkpoint card (segment)", "card.palette", [[1, 2, 256]] * 3, "palette"),
        ("checkpoint card (detect)", "card.category_ids", [1, 2, 10**400], "category_ids"),
        ("checkpoint card (multilabel)", "card.thresholds", [0.5, float("nan"), 0.5], "thresholds"),
        ("config.json of ours (classify)", "pretrained_cfg.label_names", ["ant"], "1 names"),
        ("config.json of ours (classify)", "pretrained_cfg.mean", "x", "mean"),
        ("config.json of ours (classify)", "out_indices", "01", "out_indices"),
        ("config.json of ours (classify)", "task", ["classify"], "task"),
        ("config.json of timm", "num_classes", "many", "num_classes"),
        ("config.json of transformers", "hidden_sizes", [], "hidden_sizes"),
        ("index of tar shards", "classes", [1, 2, 3], "classes"),
        ("index of tar shards", "splits.train.0.images", -3, "images"),
        ("index of tar shards", "splits.train.0.images", 10**12, "images"),
        ("index of tar shards", "splits.train.0.images", "three", "images"),
        ("index of tar shards", "splits.train.0.file", "../../secret.tar", "below the root"),
        ("index of parquet shards", "splits.train", [], "train"),
        ("contents of a shard", "1.0", 10**12, "columns"),
        ("contents of a shard", "3.0", 10**12, "beyond"),
        ("COCO file", "annotations.2.area", 10**400, "area"),
        ("COCO file", "categories.0.name", "a\nb", "categories[0]"),
        ("COCO file", "categories.0.name", "\ud800", "categories[0]"),
    ],
)
def test_values_are_decoded_by_type(
    door: str, field: str, value: Any, words: str, refused: Callable[..., str]
) -> None:
    assert words in refused(door, put(field, value))


HUGE = {
    "depths": [10**6] * 4,
    "dims": [10**6] * 4,
    "image_size": [10**6, 10**6],
    "mlp_ratios": [1e300] * 4,
    "mixers": ["attention(head_dim=1000000000000)"] * 4,
    "in_chans": 10**6,
}


@pytest.mark.parametrize("field", HUGE)
def test_a_huge_network_is_refused_before_it_is_allocated(field: str, refused: Callable[..., str]) -> None:
    for door, place in (
        ("config.json of ours (classify)", f"config.{field}"),
        ("checkpoint card (classify)", f"card.model.{field}"),
    ):
        refused(door, put(place, HUGE[field]))
    with pytest.raises(ConfigError):
        metaformer.create_model("poolformer_s12", **{field: HUGE[field]})
    with pytest.raises(ConfigError):
        metaformer.create_segmenter("semantic_fpn", fpn_dim=10**6, head_dim=10**6)


def test_a_card_has_as_many_numbers_as_its_file(refused: Callable[..., str]) -> None:
    text = refused("config.json of ours (segment)", put("config.fpn_dim", 50_000))
    assert "but the file of its weights has" in text
    assert str(MAX_BLOCKS) in refused("config.json of timm", write('{"config": {"depths": [9999, 1, 1, 1]}}'))


def test_an_input_that_memory_cannot_hold_is_refused() -> None:
    network = metaformer.create_model("poolformer_s12")
    with pytest.raises(ConfigError, match=r"image_size: 32,768×32,768 pixels need .* GB of memory"):
        check_pass(network, (32_768, 32_768))
    check_pass(network, (224, 224))


def test_memory_of_an_input_counts_what_mixers_expand_to(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, wide = (
        metaformer.create_model("poolformer_s12", mlp_ratios=(1, 1, 1, 1), mixers=mixer)
        for mixer in ("identity", "sepconv(expansion=16)")
    )
    first = 56 * 56 * 64 * 4  # bytes of the first stage's features
    monkeypatch.setattr("metaformer.models.build.memory", lambda: 8 * first)
    check_pass(plain, (224, 224))
    with pytest.raises(ConfigError, match="image_size"):
        check_pass(wide, (224, 224))


def test_checking_the_size_leaves_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = metaformer.MetaFormer(BACKBONE).state_dict()
    torch.manual_seed(3)
    found = build_network(BACKBONE).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


JSON_DOORS = [door.name for door in DOORS.values() if door.mutate is mutate.json_bytes]
LISTED = ("run's configuration", "run's command", "data check of a COCO file")
"""Doors that report what is wrong and raise nothing."""


@pytest.mark.parametrize("door", [*JSON_DOORS, "JSON lines of labels"])
def test_deep_json_is_refused(door: str, refused: Callable[..., str]) -> None:
    if door not in LISTED:
        assert "nested more than" in refused(door, write("[" * 200_000))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("door", DOORS)
def test_pipes_and_devices_are_refused_at_once(
    door: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    if door in LISTED:
        return

    def pipe(file: Path) -> None:
        file.unlink()
        os.mkfifo(file)

    def device(file: Path) -> None:
        file.unlink()
        file.symlink_to("/dev/zero")

    for number, change in enumerate((pipe, device)):
        folder = tmp_path / str(number)
        folder.mkdir()
        changed, opened = DOORS[door], time.perf_counter()
        change(changed.write(folder))
        changed.changed(folder)
        opened = time.perf_counter()
        with pytest.raises(MetaFormerError):
            changed.enter(folder)
        assert time.perf_counter() - opened < 10


def test_a_run_with_a_pipe_or_a_device_is_listed(tmp_path: Path) -> None:
    for name in ("config.json", "command.txt", "metrics.jsonl"):
        folder = tmp_path / name
        file = DOORS["run's configuration"].write(folder).with_name(name)
        file.unlink()
        os.mkfifo(file)
        assert len(find_runs(folder)) <= 1


def encrypted(file: Path) -> None:
    """Set the flag of encryption on all members."""
    data = bytearray(file.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(magic)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(magic, at + 4)
    file.write_bytes(data)


def odd_method(file: Path) -> None:
    """Name a compression that nobody reads."""
    data = bytearray(file.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = data.find(magic)
        while at >= 0:
            data[at + offset : at + offset + 2] = struct.pack("<H", 99)
            at = data.find(magic, at + 4)
    file.write_bytes(data)


def other_metadata(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change the metadata of a package."""

    def apply(file: Path) -> None:
        with zipfile.ZipFile(file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        outer = json.loads(members["net/data/x_metadata.json"])
        inner = json.loads(outer["metaformer"])
        change(inner)
        members["net/data/x_metadata.json"] = json.dumps({"metaformer": json.dumps(inner)}).encode()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return apply


@pytest.mark.parametrize(
    "change",
    [
        encrypted,
        odd_method,
        other_metadata(lambda card: card.update(outputs=None)),
        other_metadata(lambda card: card.update(format=10**400)),
        other_metadata(lambda card: card.update(format=float("inf"))),
        other_metadata(lambda card: card["inputs"].update(batch=[1])),
        other_metadata(lambda card: card["inputs"].update(dtype="no_type")),
        other_metadata(lambda card: card.pop("torch")),
        other_metadata(lambda card: card.update(machine=["x"])),
    ],
)
def test_odd_members_of_a_package_are_refused(
    change: Callable[[Path], object], refused: Callable[..., str]
) -> None:
    refused("package", change, WeightsError)


@pytest.mark.parametrize("change", [encrypted, odd_method])
def test_odd_members_of_a_checkpoint_are_refused(
    change: Callable[[Path], object], refused: Callable[..., str]
) -> None:
    refused("file of torch.save", change, WeightsError)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("end", [b".", b".\x80\x02}.", b"", b"\xff"])  # alone, with another program, damaged
def test_tuples_that_take_forever_to_hash_are_refused(end: bytes, refused: Callable[..., str]) -> None:
    nested = b")q\x00" + b"h\x00\x86q\x00" * 60  # each holds the one before twice
    refused("file of torch.save, older form", write(b"\x80\x02}" + nested + b"K\x01s" + end), WeightsError)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("program", [b"cx\n%s\n.", b"X\x01\0\0\0xX%s%s\x93."])
def test_names_that_take_forever_to_report_are_refused(program: bytes, refused: Callable[..., str]) -> None:
    name = b"y" * 100_000
    sized = (name,) if program.count(b"%s") == 1 else (len(name).to_bytes(4, "little"), name)
    refused("file of torch.save, older form", write(b"\x80\x04" + program % sized), WeightsError)


def test_graphs_of_others_are_refused(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as op

    from metaformer.inference.exported import load_exported

    one, two = (op.parameter([-1, 3, 8, 8]) for _ in range(2))
    anything = op.parameter(openvino.PartialShape.dynamic())
    graphs = {
        "two inputs": ([op.add(one, two)], [one, two]),
        "any rank": ([op.relu(anything)], [anything]),
    }
    for name, (outputs, inputs) in graphs.items():
        file = tmp_path / f"{name}.xml"
        openvino.save_model(openvino.Model(outputs, inputs), file)
        with pytest.raises(WeightsError, match=rf"{name}\.xml.* no metadata"):
            load_exported(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"ant\n\xff\xfe\n", "line 2 is not UTF-8"),
        (b"ant\nb\x1bee\n", "line 2"),
        (b"ant\n" + b"x" * 5000, "line 2"),
        ("\n".join(map(str, range(MAX_CLASSES + 1))).encode(), "classes"),
    ],
)
def test_class_names_are_lines_of_text(content: bytes, words: str, refused: Callable[..., str]) -> None:
    assert words in refused("class names", write(content), DataError)


def test_class_folders_have_names_of_one_line(tmp_path: Path) -> None:
    for name in ("ant", "b\nee"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "a.png").write_bytes(gray_png())
    with pytest.raises(DataError, match=r"b\\nee"):
        ImageFolder(tmp_path, "train")


@pytest.mark.parametrize("text", ["-1", "1000000000000", "9" * 5000, "x", "", "1e3"])
def test_class_numbers_of_shards_are_those_of_classes(text: str, tmp_path: Path) -> None:
    file = tmp_path / "shards" / "train-0.tar"
    file.parent.mkdir()
    with tarfile.open(file, "w") as tar:
        for name, content in (("0.png", gray_png()), ("0.cls", text.encode())):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    with pytest.raises(DataError, match=r"train"):
        DOORS["tar shard"].enter(tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("offset", "content"),
    [
        (156, b"S"),  # sparse
        (124, b"\x80" + (2**80).to_bytes(11, "big")),  # base-256
        (124, b"\xff" + (2**88 - 512).to_bytes(11, "big")),  # base-256, negative
        (124, b"77777777777\0"),
    ],
)
def test_tar_headers_that_lie_are_refused(offset: int, content: bytes, refused: Callable[..., str]) -> None:
    def change(file: Path) -> None:
        data = bytearray(file.read_bytes())
        with tarfile.open(file) as tar:
            at = tar.getmembers()[3].offset
        data[at + offset : at + offset + len(content)] = content
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        file.write_bytes(data)

    refused("tar shard", change, DataError)


NO_PATHS = (None, 5, 1.5, b"x", object(), ["a"], "\0", "a" * 5000, "\ud800", "~nobody_at_all/x")
CALLS: dict[str, Callable[[Any, Path], object]] = {
    "Predictor": lambda value, _: metaformer.Predictor(value),
    "evaluate": lambda value, _: metaformer.evaluate(value, "x"),
    "load_weights": lambda value, _: metaformer.load_weights(metaformer.MetaFormer(BACKBONE), value),
    "from_pretrained": lambda value, _: metaformer.from_pretrained(value),
    "save_pretrained": lambda value, _: metaformer.save_pretrained(metaformer.MetaFormer(BACKBONE), value),
    "convert": lambda value, folder: convert(value, folder / "x", "timm"),
    "load_package": lambda value, _: metaformer.load_package(value, trusted=True),
    "find_runs": lambda value, _: find_runs(value),
    "class names": lambda value, _: given_names(value),
    "images": lambda value, _: ImageList(value),
    "image folder": lambda value, _: ImageFolder(value, "train"),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_path_is_refused(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    allowed = {
        "class names": (None, ["a"]),  # none, and a list of them
        "images": (["a"],),
        "load_weights": (),
        "save_pretrained": ("~nobody_at_all/x",),  # a folder of that name
    }.get(call, ())
    for value in NO_PATHS:
        if value in allowed:
            continue
        with pytest.raises(MetaFormerError) as caught:
            CALLS[call](value, tmp_path)
        str(caught.value).encode()
        assert len(str(caught.value)) < 600, value


@pytest.mark.parametrize("name", [None, 5, ["poolformer_s12"], "x" * 100_000, "\ud800"])
def test_what_is_no_name_is_refused(name: Any) -> None:
    for create in (metaformer.create_model, metaformer.create_segmenter, metaformer.create_detector):
        with pytest.raises(ConfigError):
            create(name)


def test_outputs_are_paths(tmp_path: Path) -> None:
    for value in (None, 5, "\0"):
        with pytest.raises(OutputError):
            metaformer.train(metaformer.TrainConfig(data=DataConfig(root="x")), value)  # type: ignore[arg-type]
