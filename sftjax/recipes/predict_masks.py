"""Find a class for every pixel with a saved model, and write the masks.

sftjax predict runs/s/model --data new-scans/ --output masks/
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sftjax.core import Batch, PyTree
from sftjax.data import Processor, Table, load_images, read_images
from sftjax.data.decode import IMAGE_ENDINGS, Slice, name_of
from sftjax.data.masks import nearest_resized, size_of
from sftjax.evaluate import mask_overlays, predict, table, write_mask
from sftjax.models import ImageModel
from sftjax.recipes.picture_parts import normalizing
from sftjax.recipes.picture_rows import PictureRows
from sftjax.recipes.predict_job import Predict
from sftjax.recipes.streams import in_order

SHOWN = 9
"""At most so many pictures are drawn with their masks."""


def predict_masks(
    job: Predict,
    model: ImageModel,
    apply: Callable[..., Any],
    params: PyTree,
    processor: Processor,
    tell: Callable[[str], None],
) -> np.ndarray:
    """Write a palette PNG for each picture, of its own size, and `overlays.png` of the first.

    Returns:
      (N, H, W) classes, at the size that the model sees.

    Raises:
      ValueError: if there are no pictures, one cannot be read, or two would share a file.
    """
    assert job.data is not None
    where = pictures_of(job.data)
    images = load_images(where, processor)
    rows, names = PictureRows(images, None), model.head.labels
    seen = normalizing(processor)

    def run(params: PyTree, batch: Batch) -> jax.Array:
        return jnp.argmax(apply(params, seen(batch), None), -1).astype(jnp.uint8)

    found = predict(jax.jit(run), params, in_order(rows, job.batch_size), rows.size)
    folder = job.output or pathlib.Path("masks")
    references = images.table["image"]
    files = [file_of(reference) for reference in references]
    twice = sorted({file for file in files if files.count(file) > 1})
    if twice:
        raise ValueError(
            f"{len(twice)} masks would have the same name, such as {twice[0]}; give the pictures "
            "names of their own"
        )
    lines = []
    for reference, file, mask in zip(references, files, found, strict=True):
        write_mask(nearest_resized(mask, size_of(reference)), len(names), folder / file)
        shares = np.bincount(mask.ravel(), minlength=len(names)) / mask.size
        line: dict[str, Any] = {"picture": name_of(reference), "mask": file}
        lines.append(line | dict(zip(names, (f"{share:.3f}" for share in shares), strict=True)))
    mask_overlays(
        images.pixels[:SHOWN], None, found[:SHOWN], names, folder / "overlays.png",
        titles=[file.removesuffix(".png") for file in files[:SHOWN]],
    )  # fmt: skip
    tell(table(lines, list(lines[0])))
    tell(f"{len(files):,} masks (a pixel's value is its class) and overlays.png: {folder}")
    return found


def pictures_of(where: str) -> Table:
    """Return a table of one picture, a flat folder of pictures, or any source of pictures."""
    path = pathlib.Path(where).expanduser()
    if path.suffix.lower() in IMAGE_ENDINGS and path.is_file():
        return Table({"image": [str(path)]}, where)
    inside = path / "images" if (path / "images").is_dir() else path
    if inside.is_dir():
        flat = [str(p) for p in sorted(inside.iterdir()) if p.suffix.lower() in IMAGE_ENDINGS]
        if flat:
            return Table({"image": flat}, where)
    return read_images(where)


def file_of(reference: Any) -> str:
    """Return the name of a picture's mask.

    >>> file_of("scans/a.jpg"), file_of(Slice("t1.nii.gz", 0, 5, 0.0, 1.0))
    ('a.png', 't1-005.png')
    """
    if isinstance(reference, Slice):
        return f"{pathlib.Path(reference.path).name.partition('.')[0]}-{reference.place:03d}.png"
    return f"{pathlib.Path(str(reference)).stem}.png"
