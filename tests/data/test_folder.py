"""Image folders: classes, splits, scans, class lists and the digits of the demo."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.color import Color
from metaformer.data.augment import train_transform
from metaformer.data.class_lists import category_ids, class_list, palette, palette_for
from metaformer.data.dataset import AugmentedDataset
from metaformer.data.demo import SPLITS, DigitScenes, Scene
from metaformer.data.folder import ImageFolder
from metaformer.data.loader import Loader
from metaformer.data.sampler import TrainSampler
from metaformer.data.scan import DEADLY, ImageInfo, scan
from metaformer.data.shards.index import FORMATS
from metaformer.data.shards.parquet import ParquetImages
from metaformer.data.shards.tar import TarImages
from metaformer.data.split import need_two_classes, open_split
from metaformer.errors import BadImage, ConfigError, DataError, UnknownName


def test_reads_classes_images_and_labels(own_pets: Path) -> None:
    train = ImageFolder(own_pets, "train")
    assert train.classes == ("ant", "bee", "cat")
    assert len(train) == 12
    assert train.labels == [0] * 4 + [1] * 4 + [2] * 4
    assert train.paths == sorted(train.paths) == [train.path(i) for i in range(12)]
    assert train.image(1).size == (50, 43)
    need_two_classes(train)


def test_nested_hidden_and_other_files(own_pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    (own_pets / "train/ant/deep/er").mkdir(parents=True)
    shutil.move(own_pets / "train/ant/0.png", own_pets / "train/ant/deep/er/0.PNG")
    (own_pets / "train/ant/.hidden.png").write_bytes(b"")
    (own_pets / "train/.cache").mkdir()
    (own_pets / "train/ant/notes.txt").write_text("x")
    (own_pets / "train/bee/LICENSE").write_text("x")
    (own_pets / "train/loose.png").write_bytes(b"")
    train = ImageFolder(own_pets, "train")
    assert [p.relative_to(own_pets / "train").as_posix() for p in train.paths[:4]] == [
        "ant/1.png",
        "ant/2.png",
        "ant/3.png",
        "ant/deep/er/0.PNG",
    ]
    assert train.ignored == {".txt": 1, "without extension": 1}
    assert "1 .txt" in caplog.text and "1 file(s) that lie in no class folder" in caplog.text


def test_order_does_not_depend_on_the_file_system(own_pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ImageFolder(own_pets, "train").paths
    for name in ("ant", "bee", "cat"):  # new directory entries in another order
        folder = own_pets / "train" / name
        for file in sorted(folder.iterdir(), reverse=True):
            shutil.copy(file, own_pets / "spare")
            file.unlink()
            shutil.move(own_pets / "spare", file)
    assert ImageFolder(own_pets, "train").paths == expected


def test_missing_folders(own_pets: Path) -> None:
    with pytest.raises(DataError, match="none: no such folder"):
        ImageFolder(own_pets / "none", "train")
    with pytest.raises(DataError, match="is a file"):
        ImageFolder(own_pets / "train/ant/0.png", "train")
    with pytest.raises(DataError, match="no folder 'test'; it holds train, val"):
        ImageFolder(own_pets, "test")
    (own_pets / "empty").mkdir()
    with pytest.raises(DataError, match="holds no folders"):
        ImageFolder(own_pets / "empty", "train")


def test_no_class_folders(own_pets: Path) -> None:
    with pytest.raises(DataError, match=r"no class folders.*holds 4 other"):
        ImageFolder(own_pets / "train", "ant")


def test_empty_class(own_pets: Path) -> None:
    shutil.rmtree(own_pets / "train/bee")
    (own_pets / "train/bee").mkdir()
    (own_pets / "train/bee/list.txt").write_text("")
    with pytest.raises(DataError, match=r"bee: no images in this class folder \(it holds 1 other"):
        ImageFolder(own_pets, "train")


def test_one_class_is_enough_to_evaluate_but_not_to_train(own_pets: Path) -> None:
    for name in ("bee", "cat"):
        shutil.rmtree(own_pets / "train" / name)
    train = ImageFolder(own_pets, "train")
    with pytest.raises(DataError, match="only one class, 'ant'"):
        need_two_classes(train)


def test_val_must_hold_the_classes_of_train(own_pets: Path) -> None:
    classes = ImageFolder(own_pets, "train").classes
    shutil.rmtree(own_pets / "val/bee")
    with pytest.raises(DataError, match="val: no folder for 'bee'"):
        ImageFolder(own_pets, "val", classes)
    part = ImageFolder(own_pets, "val", classes, allow_missing=True)
    assert part.classes == classes and set(part.labels) == {0, 2}
    (own_pets / "val/dog").mkdir()
    for allow in (False, True):
        with pytest.raises(DataError, match="'dog' not among the 3 known classes"):
            ImageFolder(own_pets, "val", classes, allow_missing=allow)
    with pytest.raises(DataError, match="'ant' more than once"):
        ImageFolder(own_pets, "val", ["ant", "ant", "bee"])


def test_images_that_cannot_be_read_are_errors(own_pets: Path) -> None:
    (own_pets / "train/ant/0.png").write_bytes(b"junk")
    train = ImageFolder(own_pets, "train")
    assert len(train) == 12
    with pytest.raises(BadImage, match=r"ant/0\.png"):
        train.image(0)
    (own_pets / "train/ant/scan.tiff").write_bytes(b"")
    with pytest.raises(DataError, match=r"scan\.tiff: \.tiff images are not read"):
        ImageFolder(own_pets, "train")


def test_links_are_followed_but_not_in_circles(own_pets: Path) -> None:
    os.symlink(own_pets / "train/ant", own_pets / "train/wasp")
    assert len(ImageFolder(own_pets, "train")) == 16
    os.symlink(own_pets / "train/cat", own_pets / "train/cat/again")
    with pytest.raises(DataError, match="again: is a link to a folder that holds it"):
        ImageFolder(own_pets, "train")


def test_all_errors_can_be_collected(own_pets: Path) -> None:
    (own_pets / "train/ant/scan.heic").write_bytes(b"")
    shutil.rmtree(own_pets / "train/bee")
    (own_pets / "train/bee").mkdir()
    (own_pets / "train/cat/again").symlink_to(own_pets / "train/cat")
    (own_pets / "train/dog").mkdir()
    shutil.copy(own_pets / "train/ant/0.png", own_pets / "train/dog/0.png")
    errors: list[DataError] = []
    folder = ImageFolder(own_pets, "train", classes=["ant", "bee", "cat", "wasp"], on_error=errors.append)
    assert [str(error).removeprefix(f"{own_pets}/train").partition(";")[0] for error in errors] == [
        ": 'dog' not among the 4 known classes ('ant', 'bee', 'cat', 'wasp')",
        ": no folder for 'wasp'",
        "/ant/scan.heic: .heic images are not read: convert it to PNG or JPEG",
        "/bee: no images in this class folder",
        "/cat/again: is a link to a folder that holds it",
    ]
    assert folder.classes == ("ant", "bee", "cat", "wasp", "dog")
    assert folder.labels == [0] * 4 + [2] * 4 + [4]


KINDS = {"folder": ImageFolder, "parquet": ParquetImages, "tar": TarImages}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def root(kind: str, own_pets: Path, shard_pets: Callable[[str], Path]) -> Path:
    """The same images as a folder, as parquet and as tar files."""
    return own_pets if kind == "folder" else shard_pets(kind)


def test_each_kind_has_the_images_of_the_folder(kind: str, root: Path, own_pets: Path) -> None:
    train, folder = open_split(root, "train"), ImageFolder(own_pets, "train")
    assert isinstance(train, KINDS[kind])
    assert train.classes == ("ant", "bee", "cat") and len(train) == len(train.paths) == 12
    expected = {path.relative_to(folder.folder).as_posix(): i for i, path in enumerate(folder.paths)}
    for i, path in enumerate(train.paths):
        index = expected.pop("/".join(str(path).rpartition(": ")[2].split("/")[-2:]))
        assert str(path) == str(train.path(i)) and str(path).startswith(str(root))
        assert train.labels[i] == folder.labels[index]
        assert train.image(i).tobytes() == folder.image(index).tobytes()
    assert not expected
    need_two_classes(train)


def test_labels_follow_the_given_classes(root: Path) -> None:
    val, plain = open_split(root, "val", ["cat", "ant", "bee"]), open_split(root, "val")
    assert val.classes == ("cat", "ant", "bee")
    assert [val.classes[label] for label in val.labels] == [plain.classes[label] for label in plain.labels]
    classes = ["cat", "ant", "bee", "dog"]
    with pytest.raises(DataError, match=r"val: no .*'dog'"):
        open_split(root, "val", classes)
    assert open_split(root, "val", classes, allow_missing=True).classes[3] == "dog"
    with pytest.raises(DataError, match="'bee' not among the 2 known classes"):
        open_split(root, "val", ["cat", "ant"])


def test_a_source_can_be_sent_to_another_process(root: Path) -> None:
    train = open_split(root, "train")
    again = pickle.loads(pickle.dumps(train))
    assert again.image(7).tobytes() == train.image(7).tobytes() and again.path(7) == train.path(7)


@pytest.mark.parametrize("kind", FORMATS)
def test_shards_have_urls(root: Path, memory: str) -> None:
    fsspec.filesystem("memory").put(f"{root}/", "/bucket/", recursive=True)
    local = open_split(root, "train")
    for url in (memory, f"file://{root}"):
        remote = open_split(url, "train")
        assert str(remote.path(3)) == str(local.path(3)).replace(str(root), url)
        assert all(remote.image(i).tobytes() == local.image(i).tobytes() for i in range(12))


def test_folders_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_split(tmp_path / "none", "train")
    with pytest.raises(DataError, match="no parquet or tar files of split 'train'"):
        open_split(f"file://{tmp_path}", "train")


@pytest.mark.filterwarnings("default:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_parquet_is_training_on_the_folder(
    workers: int, own_pets: Path, shard_pets: Callable[[str], Path]
) -> None:
    shards = shard_pets("parquet")

    def batches(root: Path, workers: int) -> list[torch.Tensor]:
        data = AugmentedDataset(open_split(root, "train"), train_transform(32), seed=3)
        sampler = TrainSampler(len(data), batch_size=5, seed=3, repeated_aug=2)
        found = []
        for epoch in range(2):
            sampler.seek(epoch)
            found += [part for batch in Loader(data, sampler, workers=workers) for part in batch[:3]]
        return found

    expected, got = batches(own_pets, 0), batches(shards, workers)
    assert len(expected) == 12 and all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


class Deadly:
    """Images of which some kill the process that reads them, as a fault in a decoder would."""

    def __init__(self, count: int, *killers: int) -> None:
        self.labels, self.killers = [0] * count, killers

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        return f"image {index}"

    def image(self, index: int, background: Color | None = None) -> Image.Image:
        if index in self.killers:
            os.kill(os.getpid(), signal.SIGKILL)
        return Image.new("RGB", (index + 1, 3), (index % 256, 0, 0))


def test_every_image_is_read_once_and_in_order(own_pets: Path) -> None:
    folder = ImageFolder(own_pets, "train")
    (own_pets / "train/bee/1.png").write_bytes(b"junk")
    Image.open(own_pets / "train/ant/0.png").save(own_pets / "train/cat/3.bmp")
    for workers in (1, 3):
        images = scan(folder, workers=workers, progress=False)
        assert [image.index for image in images] == list(range(12))
        assert [image.index for image in images if image.error] == [5]
        assert "not a JPEG" in images[5].error
        assert (images[3].width, images[3].height) == (50, 49)
        assert len({image.digest for image in images}) == 12


def test_the_digest_is_that_of_the_pixels(own_pets: Path) -> None:
    Image.open(own_pets / "train/ant/0.png").save(own_pets / "train/cat/9.bmp")
    images = scan(ImageFolder(own_pets, "train"), progress=False)
    assert images[0].digest == images[12].digest


@pytest.mark.parametrize("killers", [(0,), (70,), (3, 4, 150, 199)])
def test_images_that_kill_their_reader(killers: tuple[int, ...]) -> None:
    images = scan(Deadly(200, *killers), workers=2, progress=False)
    assert [image.index for image in images] == list(range(200))
    assert {image.index: image.error for image in images if image.error} == dict.fromkeys(killers, DEADLY)


def _width(source: ImageFolder, index: int) -> ImageInfo:
    return ImageInfo(index, source.image(index).width)


def test_another_reader_of_some_images() -> None:
    images = scan(Deadly(200, 5), workers=2, progress=False, read=_width, indices=range(5, 200, 3))
    assert [image.index for image in images] == list(range(5, 200, 3))
    assert images[0].error == DEADLY
    assert all((image.width, image.height) == (image.index + 1, 0) for image in images[1:])


def test_progress_is_shown(own_pets: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scan(ImageFolder(own_pets, "train"), workers=1, label="train")
    assert "train: 100%" in capfd.readouterr().err


SLOW = """
import signal, time
from PIL import Image
from metaformer.data.scan import scan

class Slow:
    labels = [0] * 3000
    def __len__(self): return 3000
    def path(self, index): return str(index)
    def image(self, index, background):
        time.sleep(0.01)
        return Image.new("RGB", (2, 2))

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins without
print("begun", flush=True)
scan(Slow(), workers=2, progress=False)
"""


def test_an_interrupt_ends_it_soon() -> None:
    args = [sys.executable, "-c", SLOW]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, output = process.communicate(timeout=30)
        assert time.monotonic() - began < 5
        assert output.count("KeyboardInterrupt") == 1, output  # of the main process, none of the workers


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("ade20k", 150, ("wall", (120, 120, 120)), ("flag", (92, 0, 255))),
        ("voc", 21, ("background", (0, 0, 0)), ("tvmonitor", (0, 64, 128))),
        ("cityscapes", 19, ("road", (128, 64, 128)), ("bicycle", (119, 11, 32))),
        ("coco", 80, ("person", (220, 20, 60)), ("toothbrush", (191, 162, 208))),
        ("coco_stuff", 171, ("person", (0, 192, 64)), ("wood", (64, 64, 0))),
    ],
)
def test_published_lists(
    name: str, count: int, first: tuple[str, tuple[int, ...]], last: tuple[str, tuple[int, ...]]
) -> None:
    published = class_list(name)
    assert len(published.names) == len(set(published.names)) == len(published.palette) == count
    rows = list(zip(published.names, published.palette, strict=True))
    assert (rows[0], rows[-1]) == (first, last)
    assert all(name == name.strip() for name in published.names)
    assert all(0 <= channel <= 255 for color in published.palette for channel in color)
    assert palette_for(published.names) == published.palette


def test_classes_have_cocos_numbers_where_they_are_its_80() -> None:
    names = class_list("coco").names
    numbers = dict(zip(names, category_ids(names), strict=True))
    assert [numbers[name] for name in ("person", "stop sign", "umbrella", "tv", "toothbrush")] == [
        1,
        13,
        28,
        72,
        90,
    ]
    assert set(names) - set(class_list("coco_stuff").names) == set()
    assert category_ids(["cat", "person"]) == (1, 2)


def test_an_unknown_list_names_the_known() -> None:
    with pytest.raises(UnknownName, match="ade20k"):
        class_list("ade")


def test_colors_for_any_classes_are_vocs_all_different_and_black_the_background() -> None:
    assert palette(21) == class_list("voc").palette
    assert palette_for(("background", "dog")) == ((0, 0, 0), (128, 0, 0))
    assert palette_for(("cat", "dog")) == ((128, 0, 0), (0, 128, 0))
    assert len(set(palette(5000))) == 5000


@pytest.fixture(scope="module")
def generator() -> DigitScenes:
    return DigitScenes()


def compose(generator: DigitScenes, sources: list[int], seed: int) -> Scene:
    return generator.compose(sources, 128, (28, 52), np.random.RandomState(seed))


def test_each_digit_is_in_one_split(generator: DigitScenes) -> None:
    train, val = (set(generator.sources[split]) for split in SPLITS)
    assert not train & val
    assert train | val == set(range(1797))
    for label in range(10):
        own = [i for i in range(1797) if generator.labels[i] == label]
        assert len(set(own) & val) == len(own) // 5
    assert set(DigitScenes(1).sources["val"]) != val


def test_digits_are_bright_on_dark(generator: DigitScenes) -> None:
    for source in range(0, 1797, 60):
        scene = generator.compose([source], 64, (40, 60), np.random.RandomState(source))
        (digit,) = scene.objects
        assert (digit.label, digit.source) == (generator.labels[source], source)
        gray = np.asarray(scene.image.convert("L")).astype(float)
        # the middle of the strokes against the photograph
        assert np.quantile(gray[digit.mask], 0.75) - np.quantile(gray[~digit.mask], 0.75) > 40
        rows = np.flatnonzero(digit.mask.any(1))
        assert 30 <= rows[-1] - rows[0] + 1 <= 60


def test_masks_of_crowded_scenes_do_not_overlap(generator: DigitScenes) -> None:
    for seed in range(20):
        scene = compose(generator, [seed * 7 + i for i in range(6)], seed)
        masks = np.stack([digit.mask for digit in scene.objects])
        assert masks.sum(0).max() == 1
        assert masks.sum((1, 2)).min() > 50
        assert len(scene.objects) >= 3


def test_scenes_are_functions_of_their_randomness(generator: DigitScenes) -> None:
    images = [compose(generator, [5, 6], seed).image.tobytes() for seed in (1, 1, 2)]
    assert images[0] == images[1] != images[2]
    streams = [next(generator.scenes("val", 1, stream)).image.tobytes() for stream in (1, 1, 2)]
    assert streams[0] == streams[1] != streams[2]


@pytest.mark.parametrize(("field", "value"), [("seed", -1), ("seed", 2**32), ("per_class", 4)])
def test_values_out_of_range(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=field):
        DigitScenes(**{field: value})
