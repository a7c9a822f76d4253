"""What the configurations of dense networks have in common: a backbone's inside, and plain values."""

from dataclasses import dataclass, fields
from typing import Any, Self

from metaformer.backbones.config import MetaFormerConfig
from metaformer.errors import ConfigError, UnknownName


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """Everything that defines a network on a backbone."""

    backbone: MetaFormerConfig | None = None
    """The network that gives the maps; None for a module that is none of this library's."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as saved in JSON.

        Raises:
            ConfigError: the backbone is a foreign module, or has a mixer that is not a registered name.
        """
        if self.backbone is None:
            raise ConfigError(
                "backbone: a module that is none of this library's cannot be saved in a configuration: build "
                "the network with a name or a MetaFormerConfig, or save the weights alone (state_dict())"
            )
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return own | {"backbone": self.backbone.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what `to_dict` gave.

        Raises:
            UnknownName: a field that this version does not know.
            ConfigError: a value out of range, or no backbone.
        """
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise UnknownName(f"{cls.__name__} field", name, known)
        backbone = values.get("backbone")
        if not isinstance(backbone, dict):
            raise ConfigError(f"backbone: {backbone!r} must hold the fields of a MetaFormerConfig")
        return cls(**{**values, "backbone": MetaFormerConfig.from_dict(backbone)})
