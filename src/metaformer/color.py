"""Colors: red, green and blue of 0 … 255, as numbers or by name."""

from typing import Annotated

from metaformer.errors import ConfigError
from metaformer.serialize import Range, decode, shown

Channel = Annotated[int, Range(0, 255, integer=True)]
Color = tuple[Channel, Channel, Channel]


def to_hex(color: tuple[int, ...]) -> str:
    """A color as style sheets write it: `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def read_color(value: Color | str | None, name: str) -> Color | None:
    """Three numbers, a name such as `white`, or `#rrggbb` as a color; None stays None.

    Args:
        value: what a caller or a file gave.
        name: of the value, for errors.

    Raises:
        ConfigError: it is no color, or one with transparency.
    """
    if isinstance(value, str):
        from PIL import ImageColor

        try:
            value = ImageColor.getrgb(value)  # type: ignore[assignment]  # four numbers are refused below
        except ValueError as error:
            known = "three numbers from 0 to 255, a name such as 'white', or '#rrggbb'"
            raise ConfigError(f"{name}: {shown(value)} is no color: give {known}") from error
    color: Color | None = decode(Color | None, value, name)
    return color
