"""The averaged brain of `nilearn` as pictures of tissue: planes with masks, and patches.

It is one brain, the average of 152, and its halves mirror each other: data to see that the way from
scans to masks works, not to measure skill on. The tissue of a voxel is the likeliest of grey and
white matter where either is likelier than not, else fluid (or what is neither) inside the head's
outline of brain, else background.
"""

import csv
from pathlib import Path

import numpy as np

TISSUES = ("background", "fluid", "grey matter", "white matter")
"""The classes of a mask, in the order of their numbers."""
FILES = {
    kind: f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm")
}
EVERY = 3
"""Planes are so many millimetres apart."""
SLAB = 12
"""Millimetres of planes that make a group."""
SIDE = 28
"""Pixels of a patch's side."""
STRIDE = 9
"""Millimetres between the centres of patches."""


def write_slices(folder: Path) -> None:
    """Replace the package's files by axial planes, their masks and a manifest.

    Groups are slabs of 12 mm: neighbouring planes look alike and must not cross splits. Slabs of
    one brain touch all the same, so planes at their edges are alike, and a leak check says so.

    Raises:
      ImportError: if nibabel is not installed.
    """
    scan, tissue = _brain(folder)
    rows = []
    for place in range(0, len(scan), EVERY):
        inside = tissue[place] > 0
        if inside.mean() < 0.05:
            continue  # above and below the brain
        name = f"axial-{place:03d}.png"
        _save(scan[place], folder / "images" / name)
        _save(tissue[place], folder / "masks" / name)
        rows.append([f"images/{name}", f"masks/{name}", f"slab-{place // SLAB:02d}"])
    _manifest(folder, ["image", "mask", "group"], rows)
    (folder / "classes.txt").write_text("\n".join(TISSUES) + "\n")


def write_patches(folder: Path) -> None:
    """Replace the package's files by patches of axial planes, labelled by the tissue at the centre.

    The left half is the split train, the right half test; groups are slabs of a half.

    Raises:
      ImportError: if nibabel is not installed.
    """
    scan, tissue = _brain(folder)
    rows = []
    half = SIDE // 2
    middle = scan.shape[2] // 2
    for place in range(0, len(scan), STRIDE):
        for row in range(half, scan.shape[1] - half, STRIDE):
            for column in range(half, scan.shape[2] - half, STRIDE):
                label = tissue[place, row, column]
                if not label or abs(column - middle) < half:
                    continue  # no brain, or a patch that both halves share
                side = "left" if column < middle else "right"
                name = f"{side}/{place:03d}-{row:03d}-{column:03d}.png"
                box = scan[place, row - half : row + half, column - half : column + half]
                _save(box, folder / name)
                slab = f"{side}-{place // SLAB:02d}"
                split = "train" if side == "left" else "test"
                rows.append([name, TISSUES[label], slab, split])
    _manifest(folder, ["image", "label", "group", "split"], rows)


def _brain(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return scan and tissues, (Z, Y, X) uint8, and remove every file of the package."""
    from sftjax.data.volumes import read_volume

    t1, grey, white = (read_volume(folder / name).values for name in FILES.values())
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    high = np.percentile(t1[t1 > 0], 99.5)
    scan = np.round(np.clip(t1 / high, 0, 1) * 255).astype(np.uint8)
    grey, white = (part / max(float(part.max()), 1.0) for part in (grey, white))
    tissue = np.zeros(t1.shape, np.uint8)
    tissue[t1 > 0] = 1
    matter = np.maximum(grey, white) > 0.5
    tissue[matter] = np.where(white > grey, 3, 2)[matter]
    # Front of the head up, as such planes are shown.
    return scan[:, ::-1], tissue[:, ::-1]


def _save(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path)


def _manifest(folder: Path, header: list[str], rows: list[list[str]]) -> None:
    with (folder / "manifest.csv").open("w", encoding="utf8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([header, *rows])
