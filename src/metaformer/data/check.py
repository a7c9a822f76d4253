"""`metaformer data check`: all that is wrong with a data set, told at once and before a training finds it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
