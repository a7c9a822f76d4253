"""Icons by designer, from small packages of drawings."""

import csv
import gzip
import hashlib
import json
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metaformer.cli import main
from metaformer.data.folder import ImageFolder
from metaformer.dataset_builders import iconify
from metaformer.dataset_builders.drawing import Drawing, Renderer
from metaformer.dataset_builders.iconify import ATTRIBUTION
from metaformer.dataset_builders.icons import MANIFEST, concept, write_icons
from metaformer.errors import ConfigError, DataError, MissingPackage, OutputError
from toys import Pack, icon_set, path_of

DESIGNERS = ("Ann", "Bob", "Cem", "Dan", "Eve", "Fay", "Gil", "Hal")


def shapes(number: int) -> dict[str, str]:
    """Three drawings, in the hand of a designer."""
    size = 3 + number
    return {
        "box": f'<rect x="2" y="2" width="{size + 8}" height="{size + 6}" fill="currentColor"/>',
        "ball": f'<circle cx="{8 + number}" cy="12" r="{3 + number / 2}" fill="currentColor"/>',
        "bar-outline": f'<path d="M2 {4 + number}h20v{2 + number / 3}H2z" fill="currentColor"/>',
    }


def packed(pack: Pack, **changes: Any) -> Path:
    """A package with a set of each designer, and further ones."""
    sets = [icon_set(name.lower(), shapes(i), name) for i, name in enumerate(DESIGNERS)]
    return pack({path_of(one): one for one in (*sets, *changes.values())})


def manifest(root: Path) -> list[dict[str, str]]:
    with (root / MANIFEST).open(newline="") as file:
        return list(csv.DictReader(file))


def written(source: Path, root: Path, **options: Any) -> list[dict[str, str]]:
    """Write the data set; its manifest."""
    write_icons(root, source=source, progress=False, **{"min_sets": 4, "size": 32, **options})
    return manifest(root)


def test_an_image_folder_whose_designers_are_in_one_split(pack: Pack, tmp_path: Path) -> None:
    root = tmp_path / "icons"
    rows = written(packed(pack), root)
    assert {row["class"] for row in rows} == {"box", "ball", "bar"} and len(rows) == 24
    splits = defaultdict(set)
    for row in rows:
        splits[row["designer"]].add(row["split"])
        content = (root / row["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row["sha256"]
        name = f"{row['designer']}--{row['set']}--{row['icon']}.png"
        assert row["file"] == f"{row['split']}/{row['class']}/{name}"
        with Image.open(root / row["file"]) as image:
            assert image.size == (32, 32) and image.mode == "L" and image.getextrema() == (0, 255)
    assert all(len(found) == 1 for found in splits.values()) and len(splits) == 8
    for split in ("train", "val", "test"):
        assert ImageFolder(root, split).classes == ("ball", "bar", "box")
    text = (root / ATTRIBUTION).read_text()
    assert "[Ann](https://example.org/ann)" in text and "MIT" in text
    assert json.loads((root / "dataset.json").read_text())["package_sha256"]


def test_the_same_arguments_give_the_same_bytes(pack: Pack, tmp_path: Path) -> None:
    source = packed(pack)
    one, other = (written(source, tmp_path / name) for name in ("one", "other"))
    assert one == other
    assert written(source, tmp_path / "third", seed=1) != one


@pytest.mark.parametrize(
    ("change", "left_out"),
    [
        ({"spdx": "CC-BY-NC-4.0"}, "license"),
        ({"palette": True}, "colors"),
        ({"author": "Ann"}, ""),
    ],
)
def test_which_sets_are_used(change: Mapping[str, Any], left_out: str, pack: Pack, tmp_path: Path) -> None:
    extra = icon_set("zed", shapes(9), **{"author": "Zed", **change})
    rows = written(packed(pack, extra=extra), tmp_path / "icons")
    assert any(row["set"] == "zed" for row in rows) == (not left_out)


def test_copies_are_left_out_and_their_sets_stay_together(pack: Pack, tmp_path: Path) -> None:
    box, bar = shapes(0)["box"], shapes(0)["bar-outline"]
    fork = {"box": box, "box-16": box, "box-20": box, "bar": bar, "bar-16": bar, "ball": shapes(9)["ball"]}
    rows = written(packed(pack, extra=icon_set("fork", fork, "Zoe")), tmp_path / "icons")
    own = [row for row in rows if row["set"] == "fork"]
    assert [row["class"] for row in own] == ["ball"]
    (ann,) = {row["designer"] for row in rows if row["set"] == "ann"}
    assert own[0]["designer"] == ann


def test_an_image_of_two_classes_is_in_none(pack: Pack, tmp_path: Path) -> None:
    body = '<path d="M1 1h9v9z" fill="currentColor"/>'
    extra = icon_set("zed", {"box": body, "ball": body, "bar": shapes(9)["bar-outline"]}, "Zed")
    rows = written(packed(pack, extra=extra), tmp_path / "icons")
    assert [row["class"] for row in rows if row["set"] == "zed"] == ["bar"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("arrow-left", "arrow-left"),
        ("arrow-left-bold", "arrow-left"),
        ("home-outline-24", "home"),
        ("outline", "outline"),
        ("battery-2", "battery-2"),
    ],
)
def test_concepts_are_names_without_styles(name: str, shown: str) -> None:
    assert concept(name) == shown


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer() as running:
        yield running


def rendered(renderer: Renderer, body: str, side: int = 16, **fields: float) -> Image.Image | None:
    drawing = Drawing(body, **{"width": 24.0, "height": 24.0, **fields})
    return renderer.render(drawing, side, "ann:box")


@pytest.mark.parametrize(
    "body",
    [
        '<image href="/etc/passwd"/>',
        '<image xlink:href="file:///etc/passwd"/>',
        "<text>a</text>",
        "<script>1</script>",
        "<style>@import 'x'</style>",
        '<!DOCTYPE x [<!ENTITY y "z">]>',
        '<rect fill="url(http://example.org/x)"/>',
        '<use href="#a"/>',
        '<s:image xmlns:s="http://www.w3.org/2000/svg" href="/etc/passwd"/>',
        '<rect fill="u&#114;l(x)"/>',
        '<rect style="fill: url( x )"/>',
        '<linearGradient id="a" href="x.svg#b"/>',
        "<g>" * 300 + "</g>" * 300,
        "".join(f'<mask id="a{i}"><g mask="url(#a{i + 1})"/></mask>' for i in range(300)),
        '<g mask="url(#a)"/>' * 40,
        '<filter id="f"/>',
        "<path d='" + "M0 0" * 50_000 + "'/>",
    ],
)
def test_drawings_that_refer_to_other_things_are_not_rendered(body: str, renderer: Renderer) -> None:
    assert rendered(renderer, body) is None


@pytest.mark.parametrize("body", ["<rect", "", "<rect width='9' height='9'/></svg>"])
def test_faulty_drawings_give_nothing_or_an_empty_image(body: str, renderer: Renderer) -> None:
    image = rendered(renderer, body)
    assert image is None or image.getchannel("A").getextrema() == (0, 0)


def test_gradients_are_rendered(renderer: Renderer) -> None:
    body = (
        '<defs><linearGradient id="a"><stop stop-color="#f00"/></linearGradient></defs>'
        '<rect width="24" height="24" fill="url(#a)"/>'
    )
    image = rendered(renderer, body)
    assert image is not None and image.getpixel((8, 8)) == (255, 0, 0, 255)


def test_a_drawing_keeps_its_shape(renderer: Renderer) -> None:
    image = rendered(renderer, '<rect width="24" height="12"/>', 32, height=12.0)
    assert image is not None
    alpha = np.asarray(image.getchannel("A"))
    assert alpha.shape == (32, 32) and alpha[8:24].min() == 255 and alpha[:8].max() == alpha[24:].max() == 0


BOMB = '<path stroke="#000" stroke-dasharray="5e-5" d="M0 0h24"/>' * 1500
"""Lines of a quarter of a million dashes each."""


def test_a_drawing_that_takes_long_is_an_error_that_names_it(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaformer.dataset_builders.icons.Renderer", partial(Renderer, seconds=1))
    extra = icon_set("zed", {"box": BOMB}, "Zed")
    with pytest.raises(DataError, match=r"^zed:box: takes more than 1 s of processor time") as caught:
        written(packed(pack, extra=extra), tmp_path / "icons")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "icons").exists()


def test_memory_for_a_drawing_is_limited() -> None:
    with (
        Renderer(memory=1 << 20) as small,
        pytest.raises(DataError, match=r"^ann:box: takes too much memory"),
    ):
        rendered(small, '<path stroke="#000" stroke-dasharray="2e-5" d="M0 0h24"/>')


def put(place: str, value: Any) -> dict[str, Any]:
    """A set in which one value is another."""
    one = icon_set("ann", shapes(0))
    *above, last = place.split(".")
    where = one
    for key in above:
        where = where[key]
    where[last] = value
    return one


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 200_000, "nested"),
        (b"{", "JSON"),
        (b"[]", "file"),
        (put("info", None), "info"),
        (put("info.license", "MIT"), "license"),
        (put("info.author.name", "a\nb"), "name"),
        (put("info.palette", "yes"), "palette"),
        (put("icons", []), "icons"),
        (put("icons.box", 3), "icons"),
        (put("icons.box.body", 3), "body"),
        (put("icons.box.width", 1e9), "width"),
        (put("width", -1), "width"),
        (put("icons.box.left", float("nan")), "left"),
    ],
)
def test_values_are_decoded_by_type(content: Any, said: str, pack: Pack, tmp_path: Path) -> None:
    source = pack({"package/json/ann.json": content})
    with pytest.raises(DataError, match=said) as caught:
        written(source, tmp_path / "icons", min_sets=1)
    assert "ann" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "icons").exists()


def test_a_truncated_package_is_an_error_of_one_line(pack: Pack, tmp_path: Path) -> None:
    source = packed(pack)
    source.write_bytes(source.read_bytes()[:-300])
    with pytest.raises(DataError, match="damaged") as caught:
        written(source, tmp_path / "icons")
    assert str(source) in str(caught.value)
    source.write_bytes(b"no package")
    with pytest.raises(DataError, match="no npm package"):
        written(source, tmp_path / "icons")
    with pytest.raises(DataError, match=r"nowhere\.tgz"):
        written(tmp_path / "nowhere.tgz", tmp_path / "icons")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_headers_of_headers_are_an_error(kind: bytes, tmp_path: Path) -> None:
    header = tarfile.TarInfo("longer")
    header.type = kind
    source = tmp_path / "deep.tgz"
    source.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) * 5000))
    with pytest.raises(DataError, match="damaged"):
        written(source, tmp_path / "icons")


def test_content_that_gzip_has_another_checksum_of_is_an_error(pack: Pack, tmp_path: Path) -> None:
    source = packed(pack)
    stored = gzip.compress(gzip.decompress(source.read_bytes()), compresslevel=0)
    damaged = stored.replace(b"circle", b"circus", 1)
    assert damaged != stored
    source.write_bytes(damaged)
    with pytest.raises(DataError, match="damaged"):
        written(source, tmp_path / "icons")
    assert not (tmp_path / "icons").exists()


def test_a_package_without_sets_says_which_is_meant(pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="@iconify/json"):
        written(pack({"package/index.js": b""}), tmp_path / "icons")


def test_sizes_are_bounded(pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = packed(pack)
    for name, bound in (("LARGEST_SET", 512), ("LARGEST_PACKAGE", 2000), ("MOST_MEMBERS", 3)):
        with monkeypatch.context() as patched:
            patched.setattr(iconify, name, bound)
            with pytest.raises(DataError, match=r"larger|more than"):
                written(source, tmp_path / "icons")


def test_links_and_other_names_are_not_followed(pack: Pack, tmp_path: Path) -> None:
    source = packed(pack)
    with tarfile.open(tmp_path / "more.tgz", "w:gz") as archive, tarfile.open(source) as old:
        for member in old:
            archive.addfile(member, old.extractfile(member))
        for name in ("package/json/link.json", "package/json/../../evil.json", "/etc/evil.json"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("package/json/holes.json")
        member.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,0"}
        archive.addfile(member)
    assert len(written(tmp_path / "more.tgz", tmp_path / "icons")) == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iconify-json.tgz", "icons", "more.tgz"]


@pytest.mark.parametrize(("field", "value"), [("min_sets", 0), ("size", 8), ("size", 4096)])
def test_values_out_of_range(field: str, value: int, pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=field):
        written(packed(pack), tmp_path / "icons", **{field: value})


def test_what_too_few_sets_show_is_an_error(pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="min_sets"):
        written(packed(pack), tmp_path / "icons", min_sets=9)


def test_the_renderer_is_named_where_it_is_missing(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingPackage, match=r"metaformer\[icons\]"):
        written(packed(pack), tmp_path / "icons")
    assert not (tmp_path / "icons").exists()


def test_a_folder_with_something_in_it_is_left_alone(pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not empty"):
        written(packed(pack), tmp_path)


def test_the_command(pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "icons", str(tmp_path / "icons"), f"--from={packed(pack)}", "--size=32"]
    assert main([*command, "--min-sets=4"]) == 0
    assert "images" in capsys.readouterr().out
    assert main([*command[:2], str(tmp_path / "more"), *command[3:], "--min-sets=99"]) == 1
    assert "ask for fewer" in capsys.readouterr().err.splitlines()[-1]
    assert main(command[:3]) == 2
    assert "--from" in capsys.readouterr().err
