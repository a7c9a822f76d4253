"""Explain: where in an image a network sees what it says."""

from collections.abc import Sequence

from PIL import Image

from metaformer.attribution.stages import trunk_of
from metaformer.errors import ConfigError
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.explain import heat_map
from metaformer.tasks.exported import ExportedNetwork
from metaformer.tasks.heat import Box, Heat, Subject


class Explainer:
    """Heat maps of one network.

    Args:
        model: the network, not rewritten.

    Raises:
        ConfigError: an exported file, which has no gradients, or another form without stages.
    """

    def __init__(self, model: LoadedModel) -> None:
        if isinstance(model.model, ExportedNetwork):
            raise ConfigError(
                f"{model.name}: an exported file has no gradients to explain by: give the run it was made of"
            )
        trunk_of(model.model)
        self.model = model.to(model.device, model.amp)

    def find(self, image: Image.Image, count: int = 3) -> Sequence[Subject]:
        """What the network finds in an RGB image, the surest first: what `heat` can explain."""
        return self.model.spec.explain.find(self.model, image, count)

    def heat(self, image: Image.Image, index: int, box: Box | None = None, stage: int = -1) -> Heat:
        """Where an image speaks for a class: (H, W), float32, at the image's size, from 0 to 1.

        0 is where it does not, or where the network does not look: outside a classifier's crop. The map of an
        image of one color is 0.

        Args:
            image: an RGB image.
            index: the class, from 0.
            box: left, top, right and bottom in the image's pixels, for segmentation and detection.
            stage: whose features are weighed, from 0; −1 for the last, which knows most and sees coarsest.

        Raises:
            ConfigError: no such class or stage; a class, or in a box an object, that is not there.
            MissingPackage: captum is not there.
            TrainingError: values that are not finite.
        """
        return heat_map(self.model, image.convert("RGB"), index, box, stage)
