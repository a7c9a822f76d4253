"""What dense networks are built on; which weights they begin with is tested with the networks."""

import pytest
from torch import nn

from metaformer.errors import ConfigError
from metaformer.factory import backbone_config, choose_backbone, model_config


def test_one_backbone_is_chosen() -> None:
    module = nn.Identity()
    assert choose_backbone("upernet", "", None, "poolformer_s24") == "poolformer_s24"
    assert (
        choose_backbone("upernet_poolformer_s12", "poolformer_s12", None, "poolformer_s24")
        == "poolformer_s12"
    )
    assert choose_backbone("upernet", "", module, "poolformer_s24") is module
    with pytest.raises(
        ConfigError, match="upernet_poolformer_s12: has the backbone poolformer_s12 in its name"
    ):
        choose_backbone("upernet_poolformer_s12", "poolformer_s12", "poolformer_s36", "poolformer_s24")


def test_changes_that_are_none_leave_a_configuration_as_it_is() -> None:
    config = model_config("poolformer_s12", drop_path_rate=0.3)
    assert backbone_config(config, {"drop_path_rate": None, "in_chans": None}) == config
    changed = backbone_config("poolformer_s12", {"drop_path_rate": 0.3, "in_chans": None})
    assert changed is not None and (changed.drop_path_rate, changed.grid_mode) == (0.3, "interpolate")
    assert backbone_config(nn.Identity(), {"feature_norm": "fresh"}) is None
