"""Prepare a TFDS set of pictures once, in a format that is read without TensorFlow.

TFDS encodes pictures with TensorFlow, so this needs the extra `prepare` (`tensorflow-cpu`); reading
what it wrote (`read_images("tfds:NAME", data_dir=...)`) does not. It may run on another machine or
in another environment:

    pip install "sftjax[prepare]"
    python -m sftjax.data.tfds_prepare fashion_mnist DATA_DIR /usr/share/datasets/fashion-mnist

The last argument is a folder with the set's own files, where there is no network; the one above is
what Debian's `dataset-fashion-mnist` installs. It takes about two minutes and prints 60000.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any


def prepare_tfds(name: str, data_dir: str | Path, files: str | Path | None = None) -> int:
    """Write a TFDS data set as ArrayRecord and return the rows of its `train` split.

    Args:
      name: as TFDS knows it.
      data_dir: where to; the `data_dir` to read from later.
      files: a folder with the files that TFDS would download. They are taken as they are: TFDS
        records their checksums instead of comparing them, since Debian's differ in gzip's header.

    Raises:
      ImportError: if TensorFlow is not installed.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            f"preparing tfds:{name} needs TensorFlow, once: pip install "
            '"sftjax[prepare]" (in any environment; reading it never needs TensorFlow)'
        )
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder(name, data_dir=str(data_dir))
    config = tfds.download.DownloadConfig(
        manual_dir=None if files is None else str(files), register_checksums=files is not None
    )
    builder.download_and_prepare(file_format="array_record", download_config=config)
    return builder.info.splits["train"].num_examples


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        raise SystemExit("usage: python -m sftjax.data.tfds_prepare NAME DATA_DIR [FILES]")
    print(prepare_tfds(*sys.argv[1:]))
