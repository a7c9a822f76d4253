"""Names of dense networks."""

from metaformer.backbones.variants import VARIANTS
from metaformer.factory import combined, matching, split


def test_every_combined_name_is_split_into_what_it_was_made_of() -> None:
    kinds = ("rcnn", "mask_rcnn", "mask")
    for name in combined(kinds):
        parts = split(name, kinds)
        assert parts is not None and parts[1] in VARIANTS and f"{parts[0]}_{parts[1]}" == name
        assert split(f"{name}.tag", kinds) == (*parts[:2], "tag")
    assert split("mask_rcnn", kinds) == ("mask_rcnn", "", "")
    assert split("mask_rcnn_resnet50", kinds) is None and split("masked", kinds) is None


def test_patterns_are_held_against_the_name_with_and_without_tag() -> None:
    names = ["a_s12.one", "a_s24.one", "b_s12.two"]
    assert matching(names, "") == names
    assert matching(names, "a_*") == names[:2] and matching(names, "*_s12") == [names[0], names[2]]
    assert matching(names, "*.two") == names[2:] and matching(names, "a") == []
