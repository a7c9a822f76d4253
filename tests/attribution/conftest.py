"""Images for tests of maps."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Ten squares of 224 pixels of scikit-learn's two photographs."""
    random = np.random.RandomState(0)
    images = []
    for pixels in load_sample_images().images:
        for _ in range(5):
            top, left = random.randint(0, 427 - 224), random.randint(0, 640 - 224)
            images.append(Image.fromarray(pixels[top : top + 224, left : left + 224]))
    return images
