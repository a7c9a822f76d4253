from metaformer.backbones.config import MetaFormerConfig
from metaformer.backbones.feature_info import FeatureInfo


def test_channels_and_reduction() -> None:
    info = FeatureInfo.of(MetaFormerConfig())
    assert info.channels() == [64, 128, 320, 512]
    assert info.reduction() == [4, 8, 16, 32]
    assert info.pick((1, 3)).module_name() == ["stages.1", "stages.3"]


def test_reduction_where_a_stage_keeps_its_resolution() -> None:
    config = MetaFormerConfig(dims=(64, 64, 320, 512), downsamples=(False, True, True))
    assert FeatureInfo.of(config).reduction() == [4, 4, 8, 16]
