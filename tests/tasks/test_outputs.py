from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from metaformer.errors import ConfigError, OutputError
from metaformer.tasks.outputs import Prediction, Writer, check_fps, json_line, write_formats
from metaformer.weights.formats import Format


@contextmanager
def names_into(taken: list[str]) -> Iterator[Writer]:
    yield lambda name, seen: taken.append(name)
    taken.append("end")


def test_every_format_gets_every_result_under_one_name(
    seen: Callable[..., Prediction], tmp_path: Path
) -> None:
    first: list[str] = []
    second: list[str] = []
    formats = [
        Format(names_into(first), "lines", tmp_path / "lines"),
        Format(names_into(second), "images", tmp_path / "drawn", tmp_path / "drawn"),
    ]
    found = [seen("a/x.jpg"), seen("b/x.jpg"), seen("c.gif", frame=0), seen("c.gif", frame=1)]
    told = list(write_formats(found, formats))
    assert first == second == ["x", "x_2", "c_000000", "c_000001", "end"]
    assert told == [f"4 lines: {tmp_path / 'lines'}", f"4 images: {tmp_path / 'drawn'}"]


def test_images_in_a_folder_of_results_are_refused(seen: Callable[..., Prediction], tmp_path: Path) -> None:
    one = seen("a/x.jpg")
    formats = [Format(names_into([]), "images", tmp_path, Path(one.result.path).parent)]
    with pytest.raises(OutputError, match="choose another folder"):
        list(write_formats([one], formats))


def test_a_frame_tells_its_place(seen: Callable[..., Prediction]) -> None:
    assert json_line(seen(frame=3))["frame"] == 3 and "frame" not in json_line(seen())


def test_an_animation_needs_images_and_speed() -> None:
    check_fps(None, False)
    check_fps(25, True)
    for fps, images, told in (
        (25, False, "ask for images"),
        (0, True, "above 0"),
        (2000, True, "at most"),
    ):
        with pytest.raises(ConfigError, match=told):
            check_fps(fps, images)
