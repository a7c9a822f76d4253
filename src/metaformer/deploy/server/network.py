"""A loaded network as its process uses it: images, tensors and questions in, answers out."""

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from metaformer.color import to_hex
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.deploy.optimize import optimize
from metaformer.deploy.server.errors import RequestError
from metaformer.deploy.server.tensor import DATATYPES
from metaformer.errors import ConfigError, MetaFormerError
from metaformer.inference.explain import Explainer
from metaformer.inference.model import input_size, load_model
from metaformer.inference.predictor import Predictor
from metaformer.models.base import autocast
from metaformer.models.build import check_pass
from metaformer.registry import import_files
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.exported import Arrays, ExportCard, ExportedNetwork, ExportOptions
from metaformer.weights.io import state_sha256

CAPTUM: Final = "captum"
"""Package that the extra `explain` brings."""
WARM_UP: Final = (256, 192)
"""Height and width of the first image, where the network takes any."""
EXPLAINED_PIXELS: Final = 4_000_000
"""Of the largest input that is explained: gradients take the features of all blocks, a kilobyte a pixel."""
PNG_LEVEL: Final = 1
"""Compression of images in answers: of little use on a local network, and slow."""
Answer = Callable[[], tuple[dict[str, Any], list[bytes]]]
"""Makes fields and buffers of an answer, while the next batch is computed."""
Rows = list[dict[str, Any]]
"""Fields of the requests of a batch."""


class ServedNetwork:
    """A network with its predictor.

    Args:
        settings: fields of `ModelSettings`.

    Raises:
        MetaFormerError: it cannot be loaded.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        import_files(settings["imports"])
        self._settings = settings
        self._weights = ""
        """SHA-256 of the network's weights, not yet rewritten."""
        self._predictor = self._load()
        self._model: LoadedModel = self._predictor.predictor.model
        self._graph = _graph(self._model) if self._card is None else None
        self._explainer: Explainer | None = None
        self._outputs = self._warm_up()

    @property
    def _card(self) -> ExportCard | None:
        """What an exported file says of itself."""
        network = self._model.model
        return network.card if isinstance(network, ExportedNetwork) else None

    @property
    def _takes_floats(self) -> bool:
        """Whether images are normalized before the graph."""
        return self._card is not None and self._card.input == "float"

    def _load(self) -> Predictor[Any]:
        """The predictor, with what the task sets for servers."""
        settings, options = self._settings, self._settings["options"]
        predictor: Predictor[Any] = Predictor(
            settings["source"],
            batch_size=settings["max_batch"],
            rewrite=self._rewrite,
            **settings["loading"],
            **options,
        )
        spec = predictor.model.spec
        if spec.served.keys() - options.keys():
            both = {**spec.served, **options}
            predictor.predictor = spec.predictor(predictor.model, batch_size=settings["max_batch"], **both)
        return predictor

    def _rewrite(self, network: nn.Module) -> nn.Module:
        """The exact inference form; not compiled, which takes a minute a shape."""
        if isinstance(network, ExportedNetwork):  # it is in its own form
            return network
        self._weights = state_sha256(network.state_dict())
        return optimize(network, compile=False) if self._settings["optimize"] else network

    def _warm_up(self) -> Arrays:
        """Compute what the first requests would wait for; gives outputs of the graph, for their types."""
        height, width = input_size(self._model.preprocess) or WARM_UP
        if self._card is not None and self._card.image_size is not None:
            height, width = self._card.image_size
        image = Image.new("RGB", (width, height), (128, 128, 128))
        for count in {1, self._settings["max_batch"]}:
            self._predictor.predictor.predict_images([image] * count)
        shape = (1, 3, height, width) if self._takes_floats else (1, height, width, 3)
        return self._run(np.zeros(shape, np.float32 if self._takes_floats else np.uint8), None)

    def describe(self) -> dict[str, Any]:
        """What the server says of the network."""
        model, legend = self._model, self._predictor.predictor.legend
        return {
            **asdict(legend),
            "task": model.task,
            "title": model.spec.title,
            "classes": list(model.class_names),
            "colors": legend.colors and [to_hex(color) for color in legend.colors],
            "background": model.preprocess.background,
            "explain": self._unexplained is None,
            "inputs": self._inputs(),
            "outputs": [
                {"name": name, "datatype": DATATYPES[array.dtype.name], "shape": self._output_shape(name)}
                for name, array in self._outputs.items()
            ],
        }

    @property
    def _unexplained(self) -> str | None:
        """Why predictions cannot be explained; None where they can."""
        if self._card is not None:
            return "an exported file has no gradients: nothing to explain it by"
        if find_spec(CAPTUM) is None:
            return "the server lacks the extra `explain`: it cannot explain predictions"
        return None

    def _inputs(self) -> Rows:
        """Inputs of the graph in the terms of the inference protocol."""
        kind, shape = ("FP32", [-1, 3, -1, -1]) if self._takes_floats else ("UINT8", [-1, -1, -1, 3])
        rows: Rows = [{"name": "images", "datatype": kind, "shape": shape}]
        if self._model.spec.export.takes_sizes:
            rows.append({"name": "sizes", "datatype": "INT64", "shape": [-1, 2]})
        return rows

    def _output_shape(self, name: str) -> list[int]:
        """Shape of an output, −1 where it follows the images."""
        letters = re.findall(r"\w+", self._model.spec.export.outputs[name].partition(")")[0])
        sizes = self._outputs[name].shape
        return [-1 if letter in "NHW" else size for letter, size in zip(letters, sizes, strict=True)]

    def predict(self, jobs: Rows, buffers: Sequence[Any]) -> list[Answer]:
        """Predictions of images, whose pixels are in the buffers."""
        images = [_image(job, buffer) for job, buffer in zip(jobs, buffers, strict=True)]
        for image in images:
            check_input(self._model, image, self._settings["max_pixels"])
        results = self._predictor.predictor.predict_images(images)
        return [
            _drawn(result, image) if job["draw"] else _response(result)
            for job, image, result in zip(jobs, images, results, strict=True)
        ]

    def infer(self, jobs: Rows, buffers: Sequence[Any]) -> list[Answer]:
        """Outputs of the graph for tensors of one shape of images."""
        dtype = np.float32 if self._takes_floats else np.uint8
        tensors = [
            np.frombuffer(buffer, dtype).reshape(job["shape"])
            for job, buffer in zip(jobs, buffers, strict=True)
        ]
        sizes = None
        if self._model.spec.export.takes_sizes:
            own = self._size(jobs[0]["shape"])
            sizes = [size for job in jobs for size in job["sizes"] or [own] * job["shape"][0]]
        outputs = self._run(tensors[0] if len(tensors) == 1 else np.concatenate(tensors), sizes)
        ends = np.cumsum([len(tensor) for tensor in tensors])
        return [
            _arrays({name: array[end - len(tensor) : end] for name, array in outputs.items()})
            for tensor, end in zip(tensors, ends, strict=True)
        ]

    def _size(self, shape: Sequence[int]) -> tuple[int, int]:
        """Height and width of images of this shape."""
        return (shape[2], shape[3]) if self._takes_floats else (shape[1], shape[2])

    @torch.inference_mode()
    def _run(self, images: Any, sizes: Any) -> Arrays:
        """Outputs of the graph by name."""
        height, width = self._size(images.shape)
        if sizes is None and self._model.spec.export.takes_sizes:
            sizes = [(height, width)] * len(images)
        model, tensor = self._model, torch.from_numpy(images if images.flags.writeable else images.copy())
        if isinstance(model.model, ExportedNetwork):
            floats = tensor if self._takes_floats else tensor.permute(0, 3, 1, 2).float()
            return {name: value.numpy() for name, value in model.model.compute(floats, sizes).items()}
        assert self._graph is not None
        check_pass(model.model, (height, width))
        inputs = [tensor.to(model.device)]
        if sizes is not None:
            inputs.append(torch.tensor(sizes, device=model.device).reshape(-1, 2))
        with autocast(model.device, model.amp):
            outputs: tuple[Tensor, ...] = self._graph(*inputs)
        return {name: value.cpu().numpy() for name, value in zip(self._graph.outputs, outputs, strict=True)}

    def explain(self, jobs: Rows, buffers: Sequence[Any]) -> list[Answer]:
        """What the network looks at in one image for a class, as a gray image."""
        if self._explainer is None:
            self._explainer = self._load_explainer()
        ((job,), (buffer,)) = jobs, buffers
        image, box = _image(job, buffer), job["box"] and tuple(job["box"])
        check_input(self._explainer.model, image, EXPLAINED_PIXELS)
        heat = self._explainer.heat(image, job["index"], box, stage=None)
        gray = Image.fromarray(np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8))
        return [lambda: ({}, [encode_png(gray)])]

    def _load_explainer(self) -> Explainer:
        """It needs gradients: the network as it is, which is loaded again when it is first asked for.

        Raises:
            RequestError: there is nothing to explain by, or another network in the place of the one served.
        """
        if self._unexplained is not None:
            raise RequestError(501, self._unexplained)
        loading = {
            name: value for name, value in self._settings["loading"].items() if name not in ("device", "amp")
        }
        try:
            model = load_model(self._settings["source"], **loading)
        except MetaFormerError as error:
            text = "the network's files cannot be read any more: start the server again"
            raise RequestError(503, text) from error
        if state_sha256(model.model.state_dict()) != self._weights:
            raise RequestError(503, "the network's files have been replaced: start the server again")
        return Explainer(model.to(self._model.device, "none"))


def check_input(model: LoadedModel, image: Image.Image, limit: int) -> None:
    """Refuse an image that is too large when it is resized and padded.

    Raises:
        ConfigError: the network's input would have more pixels than `limit`.
    """
    preprocess = model.preprocess
    if isinstance(preprocess, DensePreprocess):
        width, height = preprocess.size(*image.size)
        if width * height > limit:
            raise ConfigError(
                f"image: the network's input would be {width}×{height}, and {limit:,} pixels are the most: "
                "send a smaller one"
            )


def _graph(model: LoadedModel) -> Any:
    """The network with the inputs and outputs of exported files."""
    return model.spec.export.graph(model.model, model.preprocess, ExportOptions()).to(model.device).eval()


def _image(job: dict[str, Any], buffer: Any) -> Image.Image:
    return Image.frombuffer("RGB", tuple(job["size"]), buffer, "raw", "RGB", 0, 1)


def _drawn(result: Any, image: Image.Image) -> Answer:
    return lambda: ({}, [encode_png(result.plot(image))])


def _response(result: Any) -> Answer:
    return lambda: ({}, [json.dumps(result.to_response(), allow_nan=False).encode()])


def _arrays(outputs: Arrays) -> Answer:
    rows = [{"name": name, "shape": x.shape, "dtype": x.dtype.name} for name, x in outputs.items()]
    return lambda: ({"outputs": rows}, [np.ascontiguousarray(x).tobytes() for x in outputs.values()])


def encode_png(image: Image.Image) -> bytes:
    """An image as PNG."""
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=PNG_LEVEL)
    return stream.getvalue()
