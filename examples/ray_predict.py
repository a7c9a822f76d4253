"""Predict on many machines with Ray Data; the same command resumes a job that was killed, each image once.

python examples/ray_predict.py RUN|FILE.onnx FOLDER OUT     (pip install 'ray[data]'; 4 CPUs in all, or more)
"""

import sys

import ray
from ray.data.checkpoint import CheckpointConfig

from metaformer import Predictor

BATCH, WORKERS = 8, 1
SUFFIXES = ["jpg", "jpeg", "png", "webp", "bmp"]


def main(source: str, folder: str, out: str) -> None:
    context = ray.data.DataContext.get_current()
    # The ids of what is written stand here, on a disk that all machines see, until the job is complete.
    context.checkpoint_config = CheckpointConfig(id_column="path", checkpoint_path=f"{out}.checkpoint")
    images = ray.data.read_binary_files(folder, include_paths=True, file_extensions=SUFFIXES)
    results = images.map_batches(
        Predictor,
        fn_constructor_args=(source,),
        fn_constructor_kwargs={"on_bad_image": "skip"},
        batch_size=BATCH,
        concurrency=WORKERS,
    )
    results.write_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
