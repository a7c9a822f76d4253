"""Demo data set of classification: an image folder of single digits."""

from typing import Final

from metaformer.data.demo import SPLITS, DemoFolder, DemoSize, SceneGenerator

_STREAM: Final = 1


def write_demo(folder: DemoFolder, generator: SceneGenerator, size: DemoSize) -> None:
    """Write `train` and `val` with a folder for each of the ten digits; 64×64 pixels, one digit each."""
    for split in SPLITS:
        for source in sorted(generator.sources[split]):
            for copy in range(size.copies if split == "train" else 1):
                scene = generator.compose([source], 64, (40, 60), generator.random(_STREAM, source, copy))
                label = generator.labels[source]
                folder.add_image(f"{split}/{label}/digit{source:04d}_{copy}.png", scene.image)
