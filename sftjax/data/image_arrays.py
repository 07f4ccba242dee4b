"""Pictures that come as arrays: IDX files (MNIST and its kin) and the `.npz` files of MedMNIST."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from sftjax.core import npz_names, read_npz
from sftjax.data.table import Table

IDX_FILES: dict[str, tuple[str, ...]] = {
    "train": ("train-images-idx3-ubyte.gz", "train-images-idx3-ubyte"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte"),
}
"""The files of images of each split; `labels-idx1` in place of `images-idx3` are its labels."""

FASHION_MNIST = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip
"""The classes of Fashion-MNIST, which its files do not hold (Xiao et al. 2017)."""

_IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: str | Path) -> np.ndarray:
    """Read one IDX file, plain or gzipped.

    Two zero bytes, a type, the number of axes; then each axis as a big-endian int32, then the
    values (LeCun's format of MNIST).

    Raises:
      ValueError: if it is no IDX file or is cut off.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "labels-idx1-ubyte"
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(path).tolist()
    [7, 2, 1]
    """
    path = Path(path)
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise ValueError(
            f"{path} is not an IDX file: it starts with {content[:4]!r}. Give the file as MNIST "
            "has it, such as train-images-idx3-ubyte or train-images-idx3-ubyte.gz"
        )
    axes = content[3]
    shape = tuple(np.frombuffer(content, ">i4", axes, 4)) if len(content) >= 4 + 4 * axes else ()
    dtype = np.dtype(_IDX_TYPES[content[2]])
    expected = 4 + 4 * axes + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(shape) != axes or len(content) != expected:
        raise ValueError(
            f"{path} has {len(content)} bytes where its header of shape {shape} says {expected}; "
            "was it copied to the end?"
        )
    return np.frombuffer(content, dtype, offset=4 + 4 * axes).reshape(shape)


def read_idx_folder(folder: str | Path, split: str) -> Table:
    """Read one split of a folder of IDX files: `image` (N, H, W) and `label`.

    Debian's `dataset-fashion-mnist` installs such a folder (`/usr/share/datasets/fashion-mnist`);
    a folder whose path says `fashion` gets the class names of Fashion-MNIST.

    Raises:
      ValueError: for a split without files, or images and labels that differ in number.
    """
    folder = Path(folder)
    images = next((folder / f for f in IDX_FILES.get(split, ()) if (folder / f).exists()), None)
    if images is None:
        raise ValueError(
            f"{folder} has no images of the split {split!r}; it has {_present(folder)}"
        )
    labels = folder / images.name.replace("images-idx3", "labels-idx1")
    if not labels.exists():
        raise ValueError(f"{folder} has {images.name} and not its labels, {labels.name}")
    pixels, classes = read_idx(images), read_idx(labels).astype(np.int32)
    if len(pixels) != len(classes):
        raise ValueError(f"{images} holds {len(pixels)} images and {labels.name} {len(classes)}")
    fashion = "fashion" in str(folder.absolute()).lower()
    return Table(
        {"image": pixels, "label": classes},
        str(images),
        split,
        label_names={"label": FASHION_MNIST} if fashion else {},
    )


def read_medmnist(path: str | Path, split: str) -> Table:
    """Read one split (`train`, `val`, `test`) of a MedMNIST file: `image` and `label`.

    Labels of one column are classes; of several (ChestMNIST) the column `label` holds a list of
    the positive classes a row, as `multi_label` takes them.

    Raises:
      ValueError: if the file lacks the split, or images and labels differ in number.
    """
    path = Path(path)
    names, present = (f"{split}_images", f"{split}_labels"), npz_names(path)
    missing = [name for name in names if name not in present]
    if missing:
        raise ValueError(
            f"{path} has no array {missing[0]!r}; a MedMNIST file has train_images, "
            f"train_labels, val_..., test_...; this has {', '.join(present)}"
        )
    images, labels = read_npz(path, only=names).values()
    if not images.ndim or not labels.ndim:
        raise ValueError(f"{path}: {names[0]} and {names[1]} must have a row for each picture")
    if len(images) != len(labels):
        raise ValueError(f"{path}: {len(images)} {split} images and {len(labels)} labels")
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(
            f"{path}: {names[0]} is {images.dtype} {images.shape}, and pictures are uint8 "
            "(N, H, W) or (N, H, W, 3)"
        )
    if images.ndim == 4 and images.shape[-1] not in (1, 3):
        raise ValueError(
            f"{path} holds volumes {images.shape[1:]}; this reads the flat sets of MedMNIST"
        )
    labels = labels.reshape(len(labels), -1)
    column = (
        labels[:, 0].astype(np.int32)
        if labels.shape[1] == 1
        else [np.flatnonzero(row).tolist() for row in labels]
    )
    return Table({"image": images, "label": column}, str(path), split)


def _present(folder: Path) -> str:
    found = [s for s, names in IDX_FILES.items() if any((folder / n).exists() for n in names)]
    return ", ".join(found) or "none"
