"""Predict: images in, a task's results out."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from PIL import Image
from torch import nn

from metaformer.distributed import find_device
from metaformer.errors import BadImage, ConfigError
from metaformer.inference.evaluate import check_amp, check_options
from metaformer.inference.model import load_model
from metaformer.inference.table import predict_columns
from metaformer.tasks.outputs import Prediction, Result
from metaformer.tasks.stream import ImageInput, ImageList, raise_bad

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from metaformer.tasks.classification.results import Classification
    from metaformer.tasks.detection.results import DetectedObjects
    from metaformer.tasks.multilabel.results import MultilabelResult
    from metaformer.tasks.segmentation.results import Segmentation


R = TypeVar("R", bound=Result)


class Predictor(Generic[R]):
    """A trained network as a function of images.

    For type checkers it is generic in its results: with `task` detect it is a `Predictor[DetectedObjects]`;
    without `task` results are `Any`.

    Args:
        source: run directory (its best weights), checkpoint directory, or model name.
        checkpoint: weights for a model name, in any published format (default: its published ones).
        task: `classify`, `multilabel`, `segment` or `detect`: refuse a network of another task.
        class_names: class names, or a file with one a line, where nothing else gives them.
        batch_size: images at once; one for tasks whose images have different sizes.
        workers: processes or threads that read images; 0 reads in this one.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        amp: mixed precision.
        ema: of raw and averaged weights, take the averaged ones.
        raw: of raw and averaged weights, take the raw ones.
        on_bad_image: stop at an image that cannot be read, keeping the results before it, or leave it out and
            log it; of a whole data set, up to 0.1 % of all.
        rewrite: gives the form of the network to use, such as `metaformer.optimize`.
        options: options of the task, as `metaformer predict --help` lists them, such as `top_k`, `crops`,
            `scales`, `flip`, `sliding_window`, `score` and `classes`.

    Raises:
        ConfigError: a value out of range, a network of another task, or an option that its task does not
            take.
        WeightsError: the weights cannot be read or do not fit.
    """

    @overload
    def __init__(
        self: "Predictor[Classification]",
        source: str | Path,
        checkpoint: str | Path | None = None,
        *,
        task: Literal["classify"],
        **options: Any,
    ) -> None: ...

    @overload
    def __init__(
        self: "Predictor[MultilabelResult]",
        source: str | Path,
        checkpoint: str | Path | None = None,
        *,
        task: Literal["multilabel"],
        **options: Any,
    ) -> None: ...

    @overload
    def __init__(
        self: "Predictor[Segmentation]",
        source: str | Path,
        checkpoint: str | Path | None = None,
        *,
        task: Literal["segment"],
        **options: Any,
    ) -> None: ...

    @overload
    def __init__(
        self: "Predictor[DetectedObjects]",
        source: str | Path,
        checkpoint: str | Path | None = None,
        *,
        task: Literal["detect"],
        **options: Any,
    ) -> None: ...

    @overload
    def __init__(
        self: "Predictor[Any]",
        source: str | Path,
        checkpoint: str | Path | None = None,
        *,
        task: None = None,
        **options: Any,
    ) -> None: ...

    def __init__(
        self,
        source: str | Path,
        checkpoint: str | Path | None = None,
        *,
        task: Literal["classify", "multilabel", "segment", "detect"] | None = None,
        class_names: str | Path | Sequence[str] | None = None,
        batch_size: int = 32,
        workers: int = 0,
        device: str = "auto",
        amp: Literal["none", "bf16", "fp16"] = "none",
        ema: bool = False,
        raw: bool = False,
        on_bad_image: Literal["error", "skip"] = "error",
        rewrite: Callable[[nn.Module], nn.Module] | None = None,
        **options: Any,
    ) -> None:
        check_amp(amp)
        if on_bad_image not in ("error", "skip"):
            raise ConfigError(f"on_bad_image: {on_bad_image!r} is none of 'error', 'skip'")
        place = find_device(device)
        model = load_model(source, checkpoint, class_names=class_names, ema=ema, raw=raw)
        if task is not None and task != model.task:
            raise ConfigError(f"task is {task!r}: {source} is for {model.spec.title}, task {model.task!r}")
        check_options("predictor", model, options)
        model = model.to(place, amp)
        if rewrite is not None:
            model = replace(model, model=rewrite(model.model))
        self.model, self.task, self.classes = model, model.task, model.class_names
        self.batch_size, self.workers, self.on_bad_image = batch_size, workers, on_bad_image
        self.skipped: list[BadImage] = []
        """Errors of the images that were left out so far."""
        self.predictor = model.spec.predictor(model, batch_size=batch_size, workers=workers, **options)

    @overload
    def __call__(self, images: Mapping[str, Any]) -> dict[str, Any]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: ImageInput | Iterable[ImageInput]) -> list[R]: ...

    def __call__(
        self, images: ImageInput | Iterable[ImageInput] | Mapping[str, Any]
    ) -> list[R] | dict[str, Any]:
        """Results for a file, a folder, a glob, an image, or a list of these; in order, files sorted.

        They are `Classification`s, `MultilabelResult`s, `Segmentation`s or `DetectedObjects`, at the images'
        own size; one for each frame of an animation or a video. `plot()`, `save(FILE)`, `show()` draw them.

        Of a batch of a table, a dictionary of lists or arrays, the columns come back with one for each field
        of `to_dict()`, such as `labels` and `scores`: so it is what Ray Data's `map_batches` and Hugging
        Face's `Dataset.map(batched=True)` take, and with a line around it Spark's `mapInPandas`. Images are
        in the column `image`, `bytes` or `content`, which is not handed on, else in the files of `path`;
        animations are their first frame. Fields with names in them are lists of `name` and `value`.

        Raises:
            DataError: nothing found, an image that cannot be read, or a column with the name of a result.
        """
        if isinstance(images, Mapping):
            return predict_columns(images, self._results, self.model.preprocess.background, self._on_bad)
        return list(self.stream(images))

    def _results(self, images: list[Image.Image]) -> list[R]:
        return [prediction.result for prediction in self.predictor.predict(ImageList(images))]

    def stream(self, images: ImageInput | Iterable[ImageInput]) -> Iterator[R]:
        """The same one after another, for more images than memory holds results of."""
        return map(self._drawable, self.predictions(images))

    @staticmethod
    def _drawable(prediction: Prediction[Any]) -> Any:
        """The result, which knows its image if that is in memory; files are read again to draw on them."""
        image = None if prediction.path else prediction.image
        return prediction.result.drawn_on(image, prediction.frame, prediction.background)

    def predictions(self, images: ImageInput | Iterable[ImageInput]) -> Iterator[Prediction[R]]:
        """The same, each result with its image."""
        return self.predictor.predict(ImageList(images), self._on_bad)

    def _on_bad(self, error: BadImage) -> None:
        if self.on_bad_image != "skip":
            raise_bad(error)
        self.skipped.append(error)
        _log.warning("left out: %s", error)
