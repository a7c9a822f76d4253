"""The page in a browser, with a real server: `make test-page`."""

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from metaformer.checkpoint.checkpoint import write_checkpoint
from metaformer.data.rle import run_lengths
from metaformer.serialize import to_dict
from toys import Scene, build_task, demo_config

pytestmark = pytest.mark.page

Page = Any
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LATE = 20_000
"""Milliseconds that the page may take for what it does."""
NAMES = (
    "<b>bold</b> & \"quoted\"", "<img src=x onerror=alert(1)>", "it's", "שלום עולם", "عربي (واحد)",
    "日本語の字", "Ελληνικά", "naïve 🙂", "a name that is longer than any column of a page could be " * 3,
    "plain",
)  # fmt: skip
"""Ten class names that are text and nothing else."""
TASKS = ("classify", "multilabel", "segment", "detect")
EXAMPLE = "[data-example='scene-2.jpg']"
WATCH = """
const told = (event) => console.error(`violates ${event.violatedDirective}`);
document.addEventListener("securitypolicyviolation", told);
"""


# Servers


class Server:
    """A running `metaformer serve`."""

    def __init__(self, models: Mapping[str, Path], *options: str, port: int = 0) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "metaformer", "serve", *(f"{k}={v}" for k, v in models.items())]
        self.process = subprocess.Popen([*command, "--port", str(self.port), *options])
        while not self.ready():
            assert self.process.poll() is None, "the server has ended"
            time.sleep(0.1)

    def ready(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.url}/v2/health/ready").status == 200
        except OSError:
            return False

    @property
    def children(self) -> list[int]:
        """Process ids of the networks."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]

    def answer(self, model: str, image: bytes) -> dict[str, Any]:
        """The prediction of an image, past the page."""
        headers = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{self.url}/predict/{model}", image, headers)
        with urllib.request.urlopen(request) as response:
            return dict(json.loads(response.read())["prediction"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(models: Mapping[str, Path], *options: str, port: int = 0) -> Iterator[Server]:
    server = Server(models, *options, port=port)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def named(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with random weights of classes whose names a page could stumble over."""
    config = demo_config("classify", demo)
    task, directory = build_task(config), tmp_path_factory.mktemp("named") / "checkpoint"
    card = {**task.card(), "classes": list(NAMES)}
    write_checkpoint(directory, {"model": task.model.state_dict()}, {"card": card, "config": to_dict(config)})
    return directory


@pytest.fixture(scope="module")
def models(untrained: dict[str, Path], named: Path, detect_run: Path) -> dict[str, Path]:
    """A network of each task: a detector that finds blocks, others with random weights."""
    return {**untrained, "detect": detect_run, "named": named}


@pytest.fixture(scope="module")
def server(models: dict[str, Path]) -> Iterator[Server]:
    with serving(models) as running:
        yield running


# Browsers


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert found, f"no browser: install one of {', '.join(BROWSERS)}"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        started = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


class Watched:
    """What a page did that it should not: errors, violations of its policy, requests to other hosts."""

    def __init__(self, page: Page) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.refused = False
        """Whether the test has answers refused, which browsers log."""
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: self.errors.append(dialog.message))
        page.on("request", lambda request: self.requests.append(request.url))
        page.add_init_script(WATCH)

    def _console(self, message: Any) -> None:
        expected = self.refused and message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not expected:
            self.errors.append(message.text)

    def posts(self) -> int:
        return sum("/predict/" in url or "/explain/" in url for url in self.requests)


Visit = Callable[..., tuple[Page, Watched]]


@pytest.fixture
def visit(browser: Any) -> Iterator[Visit]:
    """Opens the page of a server with a model chosen; at its end nothing may have gone wrong."""
    opened: list[tuple[Any, Watched, str]] = []

    def go(server: Server, model: str, **options: Any) -> tuple[Page, Watched]:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        page = context.new_page()
        page.set_default_timeout(LATE)
        watched = Watched(page)
        opened.append((context, watched, server.url))
        page.goto(f"{server.url}/#{model}")
        expect(page.locator("#knows")).to_be_visible(timeout=LATE)
        return page, watched

    yield go
    for context, watched, url in opened:
        context.close()
        assert not watched.errors
        foreign = [u for u in watched.requests if not u.startswith((f"{url}/", f"blob:{url}/"))]
        assert not foreign


def expect(locator: Any) -> Any:
    """Playwright's assertions, which wait."""
    from playwright.sync_api import expect as expected

    return expected(locator)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def upload(page: Page, content: bytes, name: str = "own.png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})


def shown(page: Page) -> None:
    """Wait for a result."""
    expect(page.locator("#result")).to_be_visible(timeout=LATE)


def pixels(page: Page) -> bytes:
    """What the canvas shows."""
    page.wait_for_timeout(50)
    return bytes(page.locator("#canvas").screenshot())


def point(page: Page, x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
    """Where a pixel of the image is in the window."""
    box = page.locator("#canvas").bounding_box()
    return box["x"] + x / size[0] * box["width"], box["y"] + y / size[1] * box["height"]


@pytest.fixture
def scene(scenes: dict[str, list[Scene]]) -> bytes:
    """A validation image of `blocks` with a green and a blue block, as a PNG."""
    return encoded(Image.fromarray(scenes["val"][2][0]))


# Tests


@pytest.mark.parametrize("model", TASKS)
def test_examples_and_own_images_give_results(server: Server, visit: Visit, scene: bytes, model: str) -> None:
    page, watched = visit(server, model)
    page.click(EXAMPLE)
    shown(page)
    expect(page.locator("#about")).to_contain_text("scene-2.jpg")
    upload(page, scene)
    expect(page.locator("#about")).to_contain_text("own.png")
    shown(page)
    for part in ("Decode", "Queue", "Network", "Encode", "Round trip"):
        expect(page.locator("#times")).to_contain_text(part)
    assert watched.posts() == 2


def test_names_are_text(server: Server, visit: Visit, scene: bytes) -> None:
    page, _ = visit(server, "named")
    assert page.locator("#knows bdi").all_text_contents() == list(NAMES)
    upload(page, scene)
    shown(page)
    names = page.locator(".row bdi").all_text_contents()
    best = [row["name"] for row in server.answer("named", scene)["classes"]]
    assert names == best
    assert sorted(names) == sorted(NAMES)
    assert page.locator("#headline").text_content() == best[0]
    assert page.locator(".rows b, .rows img, h1 > *").count() == 0


def test_multilabel_shows_thresholds_and_what_passes(server: Server, visit: Visit, scene: bytes) -> None:
    page, _ = visit(server, "multilabel")
    upload(page, scene)
    shown(page)
    rows = server.answer("multilabel", scene)["classes"]
    passing = [row["name"] for row in rows if row["score"] >= row["threshold"]]
    assert page.locator(".row.strong bdi").all_text_contents() == passing
    assert page.locator(".row .tick").count() == len(rows)
    tick, track = (
        page.locator(".row .tick").first.bounding_box(),
        page.locator(".row .track").first.bounding_box(),
    )
    middle = (tick["x"] + tick["width"] / 2 - track["x"]) / track["width"]
    first = next(row for row in rows if row["name"] == page.locator(".row bdi").first.text_content())
    assert middle == pytest.approx(first["threshold"], abs=0.01)


def test_segments_answer_to_the_pointer_and_the_slider(server: Server, visit: Visit, scene: bytes) -> None:
    page, watched = visit(server, "segment")
    upload(page, scene)
    shown(page)
    prediction = server.answer("segment", scene)
    labels = np.asarray(Image.open(io.BytesIO(base64.b64decode(prediction["labels"].split(",")[1]))))
    names = {row["index"]: row["name"] for row in prediction["classes"]}
    assert page.locator(".row bdi").all_text_contents() == list(names.values())
    height, width = labels.shape
    for x, y in ((3, 5), (width - 4, 6), (width // 2, height // 2), (7, height - 3)):
        page.mouse.move(*point(page, x + 0.5, y + 0.5, (width, height)))
        name = names[labels[y, x]]
        expect(page.locator("#tip bdi")).to_have_text(name)
        expect(page.locator(".row.lit bdi")).to_have_text(name)
    page.mouse.move(1, 1)
    expect(page.locator("#tip")).to_be_hidden()
    before, sent = pixels(page), watched.posts()
    page.focus("input[type=range]")
    page.keyboard.press("Home")
    assert pixels(page) != before
    assert watched.posts() == sent


def test_objects_light_up_and_follow_the_score(server: Server, visit: Visit, scene: bytes) -> None:
    page, watched = visit(server, "detect")
    upload(page, scene)
    shown(page)
    size = Image.open(io.BytesIO(scene)).size
    best = server.answer("detect", scene)["objects"][0]
    left, top, right, bottom = best["box"]
    still = pixels(page)
    page.mouse.move(*point(page, (left + right) / 2, (top + bottom) / 2, size))
    expect(page.locator(".row.lit bdi")).to_have_text(best["name"])
    assert pixels(page) != still
    page.mouse.move(1, 1)
    assert pixels(page) == still
    page.locator(".row").first.focus()
    assert pixels(page) != still
    sent = watched.posts()
    page.focus("input[type=range]")
    page.keyboard.press("End")
    expect(page.locator("#headline")).to_have_text("0 objects")
    page.keyboard.press("Home")
    page.check("input[type=checkbox]")
    assert page.locator(".row").count() == min(20, len(server.answer("detect", scene)["objects"]))
    assert watched.posts() == sent


@pytest.mark.parametrize("model", TASKS)
def test_a_click_shows_where_the_network_looked(
    server: Server, visit: Visit, scene: bytes, model: str
) -> None:
    with urllib.request.urlopen(f"{server.url}/models") as response:
        explains = {row["name"]: row["explain"] for row in json.loads(response.read())["models"]}
    if not explains[model]:
        pytest.skip("the server cannot explain predictions: captum is not installed")
    page, watched = visit(server, model)
    upload(page, scene)
    shown(page)
    page.locator(".row").first.focus()
    plain = pixels(page)
    page.keyboard.press("Enter")
    expect(page.locator("#heat")).to_be_visible(timeout=LATE)
    expect(page.locator(".row").first).to_have_attribute("aria-pressed", "true")
    assert pixels(page) != plain
    page.keyboard.press("Escape")
    expect(page.locator("#heat")).to_be_hidden()
    assert pixels(page) == plain
    page.keyboard.press("Enter")
    expect(page.locator("#heat")).to_be_visible()
    assert watched.posts() == 2, "a heat map is asked for once"


def test_label_maps_are_read_to_the_last_class(server: Server, visit: Visit) -> None:
    page, _ = visit(server, "segment")
    labels = np.random.RandomState(0).randint(0, 65535, (31, 47))
    wide = np.stack([labels >> 8, labels & 255, labels * 0], axis=-1).astype(np.uint8)
    for pixels, truth in ((wide, labels), ((labels & 255).astype(np.uint8), labels & 255)):
        url = "data:image/png;base64," + base64.b64encode(encoded(Image.fromarray(pixels))).decode()
        read = page.evaluate(
            """async ([url, wide]) => {
                const { decodeLabels } = await import("./static/labels.js");
                const { width, height, classes } = await decodeLabels(url, wide);
                return [width, height, [...classes]];
            }""",
            [url, pixels.ndim == 3],
        )
        assert read == [47, 31, truth.ravel().tolist()]


def test_masks_are_read_to_the_pixel(server: Server, visit: Visit) -> None:
    page, _ = visit(server, "detect")
    mask = np.zeros((40, 60), bool)
    mask[5:25, 30:52] = np.random.RandomState(0).rand(20, 22) < 0.5
    mask[5, 30] = mask[24, 51] = True
    ((_, holes), (_, counts)) = run_lengths(mask)
    assert sum(holes) == sum(counts) == mask.size
    thing = {"box": [30, 5, 52, 25], "color": "#0a141e", "mask": {"size": [40, 60], "counts": counts}}
    rows, columns, color = page.evaluate(
        """async (thing) => {
            const { Objects } = await import("./static/objects.js");
            const found = new Objects([thing], { width: 60, height: 40 });
            const { pixels, left, top, across, canvas } = found.mask({ at: 0 });
            const [rows, columns] = [[], []];
            pixels.forEach((value, at) => {
                if (!value) return;
                rows.push(top + Math.floor(at / across));
                columns.push(left + (at % across));
            });
            const color = canvas.getContext("2d").getImageData(columns[0] - left, rows[0] - top, 1, 1).data;
            return [rows, columns, [...color]];
        }""",
        thing,
    )
    assert (rows, columns) == tuple(axis.tolist() for axis in np.nonzero(mask))
    assert color == [10, 20, 30, 255]


def test_pictures_stand_upright(server: Server, visit: Visit) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right
    image = Image.new("RGB", (120, 60), "white")
    page, _ = visit(server, "segment")
    upload(page, encoded(image, "JPEG", exif=exif), "turned.jpg")
    shown(page)
    expect(page.locator("#about")).to_contain_text("60 × 120 pixels")
    box = page.locator("#canvas").bounding_box()
    assert box["height"] / box["width"] == pytest.approx(2, abs=0.02)


def test_picture_and_json_are_saved_and_copied(server: Server, visit: Visit, scene: bytes) -> None:
    page, _ = visit(server, "detect", permissions=["clipboard-read", "clipboard-write"])
    upload(page, scene)
    shown(page)
    with page.expect_download() as saved:
        page.click("#save-json")
    answer = json.loads(Path(saved.value.path()).read_text())
    assert saved.value.suggested_filename == "own-detect.json"
    assert answer["prediction"] == server.answer("detect", scene)
    page.click("#copy-json")
    expect(page.locator("#copy-json")).to_have_text("Copied")
    assert json.loads(page.evaluate("navigator.clipboard.readText()")) == answer
    with page.expect_download() as saved:
        page.click("#save-image")
    with Image.open(saved.value.path()) as picture:
        assert max(picture.size) == 1024


def test_an_image_is_dropped_and_pasted(server: Server, visit: Visit, scene: bytes) -> None:
    page, _ = visit(server, "classify")
    for event in ("drop", "paste"):
        page.evaluate(
            """([event, content]) => {
                const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
                const data = new DataTransfer();
                data.items.add(new File([bytes], `${event}.png`, { type: "image/png" }));
                const made = event === "drop" ? new DragEvent(event, { dataTransfer: data, bubbles: true })
                    : new ClipboardEvent(event, { clipboardData: data, bubbles: true });
                document.body.dispatchEvent(made);
            }""",
            [event, base64.b64encode(scene).decode()],
        )
        expect(page.locator("#about")).to_contain_text(f"{event}.png")
        shown(page)


def test_a_refused_image_is_said_in_the_servers_words(server: Server, visit: Visit, scene: bytes) -> None:
    page, watched = visit(server, "classify")
    watched.refused = True
    upload(page, b"no image at all", "letter.txt")
    expect(page.locator("#message")).to_be_visible(timeout=LATE)
    expect(page.locator("#message")).to_contain_text("image")
    expect(page.locator("#again")).to_be_hidden()
    expect(page.locator("#result")).to_be_hidden()
    upload(page, scene)
    shown(page)
    expect(page.locator("#message")).to_be_hidden()


def test_a_file_over_the_limit_is_not_sent(models: dict[str, Path], visit: Visit, scene: bytes) -> None:
    with serving({"classify": models["classify"]}, "--max-upload", "1KB") as server:
        page, watched = visit(server, "classify")
        upload(page, scene)
        expect(page.locator("#message")).to_contain_text("1 kB")
        assert not watched.posts()


def test_a_busy_server_is_asked_again(models: dict[str, Path], visit: Visit, scene: bytes) -> None:
    with serving({"classify": models["classify"]}, "--max-batch", "1", "--queue", "1") as server:
        page, watched = visit(server, "classify")
        expect(page.locator("#only-model")).to_have_text("classify")
        watched.refused = True
        (child,) = server.children
        os.kill(child, signal.SIGSTOP)
        head = (
            "POST /predict/classify HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
            f"Content-Length: {len(scene)}\r\n\r\n"
        )
        waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
        for connection in waiting:  # one is computed, one waits
            connection.sendall(head.encode() + scene)
            time.sleep(0.3)
        upload(page, scene)
        expect(page.locator("#message")).to_contain_text("Trying again in 1 s")
        os.kill(child, signal.SIGCONT)
        for connection in waiting:
            connection.close()
        shown(page)
        expect(page.locator("#message")).to_be_hidden()


def test_a_network_that_died_is_waited_for(models: dict[str, Path], visit: Visit, scene: bytes) -> None:
    with serving({"classify": models["classify"]}) as server:
        page, watched = visit(server, "classify")
        watched.refused = True
        (child,) = server.children
        os.kill(child, signal.SIGKILL)
        upload(page, scene)
        shown(page)
        expect(page.locator("#message")).to_be_hidden()


def test_a_server_that_died_is_waited_for(models: dict[str, Path], visit: Visit, scene: bytes) -> None:
    one = {"classify": models["classify"]}
    with serving(one) as server:
        page, watched = visit(server, "classify")
        watched.refused = True
        server.kill()
        upload(page, scene)
        expect(page.locator("#message")).to_contain_text("does not answer", timeout=LATE)
        with serving(one, port=server.port):
            shown(page)
            expect(page.locator("#message")).to_be_hidden()


@pytest.mark.parametrize("model", TASKS)
def test_a_phone_needs_no_scrolling_sideways(server: Server, visit: Visit, scene: bytes, model: str) -> None:
    page, _ = visit(server, model, viewport={"width": 375, "height": 700}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    upload(page, scene)
    shown(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_long_names_stay_on_a_phone(server: Server, visit: Visit, scene: bytes) -> None:
    page, _ = visit(server, "named", viewport={"width": 375, "height": 700})
    upload(page, scene)
    shown(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_the_keyboard_reaches_everything_with_visible_focus(server: Server, visit: Visit) -> None:
    page, _ = visit(server, "detect")
    seen = []
    for _ in range(14):
        page.keyboard.press("Tab")
        state = page.evaluate(
            """() => {
                const element = document.activeElement;
                const name = element.id || element.dataset.example || element.className;
                return [name, getComputedStyle(element).outlineStyle];
            }"""
        )
        seen.append(state)
        if state[0] == "scene-2.jpg":
            page.keyboard.press("Enter")
            shown(page)
    names = [name for name, _ in seen]
    assert {"model", "theme", "pick", "two.png", "scene-4.jpg", "open"} <= set(names)
    assert all(style != "none" for _, style in seen)


def test_dark_and_light_are_chosen_and_kept(server: Server, visit: Visit) -> None:
    page, _ = visit(server, "classify", color_scheme="dark")
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(paper)
    expect(page.locator("#theme")).to_have_attribute("aria-pressed", "true")
    page.click("#theme")
    light = page.evaluate(paper)
    assert light != dark
    page.reload()
    assert page.evaluate(paper) == light


def test_nothing_moves_where_that_is_not_wanted(server: Server, visit: Visit, scene: bytes) -> None:
    page, _ = visit(server, "classify", reduced_motion="reduce")
    upload(page, scene)
    shown(page)
    moving = """() => [...document.querySelectorAll("*")].filter((element) => {
        const { animationDuration, transitionProperty } = getComputedStyle(element);
        return animationDuration !== "0s" || transitionProperty !== "none";
    }).length"""
    assert page.evaluate(moving) == 0


def test_another_model_takes_the_image_that_is_shown(server: Server, visit: Visit, scene: bytes) -> None:
    page, _ = visit(server, "classify")
    upload(page, scene)
    shown(page)
    page.select_option("#model", "detect")
    expect(page.locator("#headline")).to_contain_text("object")
    expect(page.locator("#about")).to_contain_text("own.png")


def test_examples_are_small() -> None:
    import metaformer.deploy.server

    folder = Path(metaformer.deploy.server.__file__).parent / "page" / "examples"
    files = [path for path in folder.iterdir() if path.suffix in (".png", ".jpg")]
    assert len(files) == 6
    assert sum(path.stat().st_size for path in files) <= 150_000
    for path in files:
        assert ImageOps.exif_transpose(Image.open(path)).mode == "RGB"
