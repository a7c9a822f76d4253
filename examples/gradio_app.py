"""A Hugging Face Space: an image in, the prediction drawn on it out.

python examples/gradio_app.py RUN|FILE.onnx|MODEL     (pip install 'gradio>=6.16', which needs Pillow 12)
"""

import sys

import gradio
from PIL import Image

from metaformer import Predictor

MEGABYTES = 10


def build(source: str) -> gradio.Interface:
    """The page of a network."""
    predictor = Predictor(source)

    def predict(image: Image.Image | None) -> Image.Image | None:
        return None if image is None else predictor(image)[0].plot()

    picture = gradio.Image(type="pil", sources=["upload", "clipboard"], label="Image")
    return gradio.Interface(
        predict,
        picture,
        gradio.Image(type="pil", label=predictor.model.spec.title),
        title=predictor.model.name,
        flagging_mode="never",
        delete_cache=(600, 600),  # seconds: uploads are files in gradio
    )


if __name__ == "__main__":
    build(sys.argv[1]).launch(share=False, allowed_paths=[], max_file_size=f"{MEGABYTES}mb", show_error=False)
