"""Sections of a page as Markdown, without its images."""

import re
from collections.abc import Sequence

from metaformer.report.blocks import Block, Code, Figures, Link, Listing, Note, Section, Table
from metaformer.report.page import Tile

_SPECIAL = re.compile(r"([\\`*_\[\]<>|])")


def to_markdown(
    title: str, subtitle: str, sections: Sequence[Section], footer: str, tiles: Sequence[Tile] = ()
) -> str:
    """A page of sections below tiles; of charts and images only their titles."""
    parts = [f"# {_text(title)}", _text(subtitle)]
    if tiles:
        parts.append("\n".join(f"- {_text(name)}: **{_text(value)}**" for value, name in tiles))
    for section in sections:
        if section.blocks:
            parts.append(f"## {_text(section.title)}")
            parts += [text for block in (*section.blocks, *section.beside) if (text := _block(block))]
            parts += [_text(section.note)] if section.note else []
    return "\n\n".join([*parts, _text(footer)]) + "\n"


def _block(block: Block) -> str:
    match block:
        case Table():
            return _table(block)
        case Listing():
            return "\n".join(f"- {_text(item)}" for item in block.items)
        case Note():
            return _text(block.text)
        case Code():
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
            return f"{fence}\n{block.text.rstrip()}\n{fence}"
        case Figures():
            return f"Charts on the page: {_text(', '.join(figure.title for figure in block.figures))}."
    return ""


def _table(table: Table) -> str:
    if not table.rows:
        return "none"
    sides = [":--" if i < table.left else "--:" for i in range(len(table.columns))]
    rows = [table.columns, *(row.cells for row in table.rows)]
    lines = [f"| {' | '.join(map(_cell, cells))} |" for cells in rows]
    return "\n".join([lines[0], f"| {' | '.join(sides)} |", *lines[1:]])


def _cell(cell: str | Link) -> str:
    return f"[{_text(cell.text)}]({cell.href})" if isinstance(cell, Link) else _text(cell)


def _text(text: str) -> str:
    """Text without meaning to Markdown, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
