"""Fonts for names in any script."""

import logging
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from metaformer.visualize import fonts
from metaformer.visualize.canvas import Bar, draw_bars
from metaformer.visualize.fonts import has_characters, legible
from warm import python

BARE = """
import sys
from metaformer.visualize import fonts
fonts._SYSTEM = ()
fonts._of_matplotlib = lambda: iter(())
for text in sys.argv[1:]:
    shown, font = fonts.legible(text, 14)
    assert fonts.has_characters(font, shown), shown
    print(ascii(shown))
"""


@pytest.mark.parametrize("text", ["cat", "Käse", "Žluťoučký kůň", "кошка", "γάτα", "tiếng Việt"])
def test_names_are_drawn_in_a_font_that_has_them(text: str) -> None:
    """DejaVu of matplotlib, which the tests' environment has, without an import of it."""
    shown, font = legible(text, 14)
    assert shown == text and has_characters(font, text)


def test_the_usual_font_is_kept_where_it_has_all_characters() -> None:
    default = ImageFont.load_default(14)
    assert legible("cat", 14)[1].getname() == default.getname()  # type: ignore[union-attr]
    assert not has_characters(default, "\U0010fffe")


def test_signs_of_captions_need_no_other_font(caplog: pytest.LogCaptureFixture) -> None:
    default = ImageFont.load_default(14)
    with caplog.at_level(logging.WARNING):
        shown, font = legible("stage 0: 16×16", 14)
    assert font.getname() == default.getname()  # type: ignore[union-attr]
    assert has_characters(default, shown) and shown.startswith("stage 0: 16") and not caplog.messages


def test_without_a_font_names_become_latin_with_one_warning(tmp_path: Path) -> None:
    names = ["кошка", "Щенок", "γάτα", "猫", "Ångström"]
    done = subprocess.run(
        [*python(), "-c", BARE, *names],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": str(tmp_path)},  # no fontconfig
    )
    latin = ["koshka", "Shchenok", "gata", "<732b>", "Angstrom"]
    assert done.stdout.split() == [f"'{name}'" for name in latin]
    assert len(done.stderr.splitlines()) == 1 and "install Noto fonts" in done.stderr


def test_fontconfig_is_asked_for_other_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "fc-list"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$1" b/Noto-Bold b/Noto-Regular a/Other\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = fonts._of_fontconfig(frozenset("猫a "))
    assert found == ["b/Noto-Regular", "b/Noto-Bold", ":charset=61 732b", "a/Other"]


@pytest.mark.parametrize("name", ["two\nlines", "a\ttab", "bell\a", "\x1b[31mred"])
def test_control_characters_are_drawn_as_escapes(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        shown, _ = legible(name, 14)
    assert shown.isprintable() and "\\" in shown and not caplog.messages
    assert draw_bars(Image.new("RGB", (64, 64)), [Bar(name, 0.5)]).height > 64
