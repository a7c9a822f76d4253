"""The tables of names."""

import pytest

from metaformer.weights.formats import FORMATS, POINTWISE
from metaformer.weights.sources import SOURCES


@pytest.mark.parametrize("name", FORMATS)
def test_tables_are_well_formed(name: str) -> None:
    form = FORMATS[name]
    assert form.title and form.signs and form.rules
    theirs = [rule[0] for rule in form.rules]
    assert len(theirs) == len(set(theirs)), "a rule that is never reached"
    for template, ours in form.rules:
        assert ours is None or ("{block}" in template) == ("{block}" in ours)
    assert set(form.matrices) <= set(POINTWISE)


def test_every_published_file_has_a_format() -> None:
    assert {source.format for source in SOURCES.values()} <= set(FORMATS)
