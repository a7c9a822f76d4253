"""Take the images of the server's page and of a report: `make demo`, then `python docs/screenshots.py`.

What `make test-page` needs is needed here, too: Chromium and Playwright.
"""

import io
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

IMAGES = Path(__file__).parent / "img"
RUNS = Path("runs")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EXAMPLE = "[data-example='scene-3.jpg']"
FOUR = (0.32, 0.55)
"""Where it shows a four, as parts of its width and height."""
WIDE = {"viewport": {"width": 1200, "height": 769}, "device_scale_factor": 4 / 3}
PHONE = {
    "viewport": {"width": 375, "height": 812},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}


@contextmanager
def serving(**tasks: str) -> Iterator[str]:
    """Address of a server of demo runs, by the names that the page shows."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    models = [f"{name}={RUNS / f'demo-{task}'}" for name, task in tasks.items()]
    command = [sys.executable, "-m", "metaformer", "serve", *models, "--port", str(port)]
    with subprocess.Popen(command) as process:
        try:
            while not answers(f"http://127.0.0.1:{port}/v2/health/ready"):
                assert process.poll() is None, "the server has ended"
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def answers(url: str) -> bool:
    """Whether there is a server that is ready."""
    try:
        return urllib.request.urlopen(url).status == 200
    except OSError:
        return False


def opened(browser: Browser, address: str, **options: object) -> Page:
    """The page of a network with the result of an example."""
    page = browser.new_context(**options).new_page()
    page.goto(address)
    page.click(EXAMPLE)
    expect(page.locator("#result")).to_be_visible(timeout=20_000)
    return page


def save(png: bytes, name: str, width: int | None = None) -> None:
    """Write a screenshot under docs/img, at most this wide."""
    with Image.open(io.BytesIO(png)) as image:
        if width is not None:
            image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
        image.convert("RGB").save(IMAGES / name, quality=85)


def detect(browser: Browser, url: str) -> None:
    """Detected digits; the pointer is on one of them."""
    page = opened(browser, f"{url}/#objects", **WIDE)
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + FOUR[0] * box["width"], box["y"] + FOUR[1] * box["height"])
    expect(page.locator("#tip")).to_be_visible()
    page.wait_for_timeout(500)
    save(page.screenshot(), "page-detect.webp")


def explain(browser: Browser, url: str) -> None:
    """Where a segmenter looked for a four, in dark colors."""
    page = opened(browser, f"{url}/#segments", color_scheme="dark", **WIDE)
    page.locator(".row", has=page.locator("bdi", has_text=re.compile("^4$"))).click()
    expect(page.locator("#heat")).to_be_visible(timeout=20_000)
    page.wait_for_timeout(500)
    save(page.screenshot(), "page-explain.webp")


def phone(browser: Browser, url: str) -> None:
    """The page on a phone."""
    page = opened(browser, f"{url}/#objects", **PHONE)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)
    save(page.screenshot(), "page-phone.webp")


def mistakes(browser: Browser) -> None:
    """The two worst errors of the multi-label network, as its report shows them."""
    page = browser.new_context(viewport={"width": 900, "height": 1200}, device_scale_factor=2).new_page()
    page.goto((RUNS / "demo-multilabel" / "report.html").resolve().as_uri())
    worst = page.locator("h3", has_text="Highest loss")
    boxes = [worst.bounding_box()]
    boxes += [worst.locator(f"xpath=following-sibling::div[1]/div[{n}]").bounding_box() for n in (1, 2)]
    found = [box for box in boxes if box is not None]
    left, top = min(box["x"] for box in found) - 12, min(box["y"] for box in found) - 12
    right, bottom = (
        max(box[start] + box[length] for box in found) + 12
        for start, length in (("x", "width"), ("y", "height"))
    )
    clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    save(page.screenshot(full_page=True, clip=clip), "mistakes.jpg", width=720)


if __name__ == "__main__":
    chromium = next(filter(None, map(shutil.which, BROWSERS)))
    with (
        serving(objects="detect", segments="segment", labels="multilabel") as url,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]) as browser,
    ):
        for take in (detect, explain, phone):
            take(browser, url)
        mistakes(browser)
