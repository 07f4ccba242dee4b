"""Read data sets of TFDS as tables, through random access and without TensorFlow."""

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sftjax.data.table import Table, bytes_to_str

_VERSION = re.compile(r"\d+\.(\d+|\*)\.(\d+|\*)")


def read_name(name: str, split: str | None = None, data_dir: str | Path | None = None) -> Table:
    """Read `NAME[/config][:version][:split]`, preparing the data set first if need be.

    Raises:
      ValueError: if TFDS knows no such data set, or two splits are asked for.
    """
    builder, fixed = builder_of(name, data_dir)
    if split and fixed and split != fixed:
        raise ValueError(
            f"tfds:{name} names the split {fixed!r}, and {split!r} was asked for; leave one out"
        )
    return read_builder(builder, split or fixed)


def builder_of(
    name: str, data_dir: str | Path | None = None
) -> tuple[tfds.core.DatasetBuilder, str | None]:
    """Return the builder of `NAME[/config][:version][:split]` and the split it names, if any.

    Raises:
      ValueError: if TFDS knows no such data set.
    """
    if name.startswith("rated_sentences"):
        # Importing the module is what makes this one known to TFDS.
        importlib.import_module("sftjax.data.rated_sentences")
    name, *rest = name.split(":")
    version = rest.pop(0) if rest and _VERSION.fullmatch(rest[0]) else None
    if len(rest) > 1:
        raise ValueError(
            f"tfds:{name}:{':'.join(rest)} is not tfds:NAME[/config][:version][:split]"
        )
    _register(name.split("/")[0])
    try:
        builder = tfds.builder(
            f"{name}:{version}" if version else name, data_dir=data_dir and str(data_dir)
        )
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"TFDS knows no data set {name!r}; the names are at "
            "https://www.tensorflow.org/datasets/catalog"
        ) from error
    return builder, rest[0] if rest else None


def read_builder(builder: tfds.core.DatasetBuilder, split: str | None) -> Table:
    """Read one split of a builder.

    Args:
      builder: prepared with `file_format="array_record"` (or parquet), or not yet prepared.
      split: in the notation of TFDS (`train`, `train[:10%]`, `train+test`).

    Returns:
      The `Table`: text as `str`, numbers as arrays, class names in `label_names`; features that
      hold features keep their own dicts.

    Raises:
      ValueError: if no split is named, or the data set was prepared in a format that only
        TensorFlow reads.
    """
    name = f"tfds:{builder.info.full_name}"
    if split is None:
        raise ValueError(f"{name}: name the split to read; it has {', '.join(builder.info.splits)}")
    if not builder.info.splits:
        if by_hand := getattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", None):
            raise ValueError(
                f"{name} is not prepared in {builder.data_dir}, and TFDS cannot download it by "
                f"itself: {by_hand.strip()}"
            )
        builder.download_and_prepare(file_format="array_record")
    as_data_source: Any = builder.as_data_source
    try:
        source = as_data_source(split)
    except NotImplementedError as error:
        raise ValueError(
            f"{name} was prepared in a format that only TensorFlow reads. Prepare it again with "
            '`builder.download_and_prepare(file_format="array_record")` in another data_dir.'
        ) from error
    records: list[dict[str, Any]] = [source[i] for i in range(len(source))]
    features: Any = builder.info.features or {}
    return Table(
        {key: _column([record[key] for record in records]) for key in features},
        name=name,
        split=split,
        label_names={
            key: tuple(feature.names)
            for key, feature in features.items()
            if isinstance(feature, tfds.features.ClassLabel) and feature.names
        },
    )


def _register(name: str) -> None:
    """Import the module of a data set that TFDS knows only once its room is looked into."""
    # Without a name like that, asking costs a look at a folder; the room's own import, TensorFlow.
    module = f"tensorflow_datasets.summarization.{name}"
    if name.isidentifier() and importlib.util.find_spec(module) is not None:
        importlib.import_module(module)


def _column(values: list[Any]) -> Any:
    if values and isinstance(values[0], np.ndarray | np.generic | int | float):
        shapes = {np.shape(value) for value in values}
        array = np.asarray(values) if len(shapes) == 1 else None
        if array is not None and array.dtype.kind in "biuf":
            return array
        if all(isinstance(v, np.ndarray) and v.ndim == 3 and v.dtype.kind == "u" for v in values):
            return values  # pictures of different sizes
        values = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
    return [
        [bytes_to_str(item) for item in value] if isinstance(value, list) else bytes_to_str(value)
        for value in values
    ]
