"""The scans of two packages as manifests: what their file names say is their label."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path

XRAYS = {"NORMAL": "normal", "person": "bacterial pneumonia"}
MRIS = {"Te-gl": "glioma", "Te-me": "meningioma", "Te-no": "no tumour", "Te-pi": "pituitary"}


def write_xrays(folder: Path) -> None:
    """Write the manifest of the chest X-rays, by patient: one has two pictures."""
    _write(folder, XRAYS)


def write_mris(folder: Path) -> None:
    """Write the manifest of the brain MRIs; nobody states their patients, so each stands alone."""
    _write(folder, MRIS)


def patient_of(stem: str) -> str:
    """Return whom a picture is of, as far as its name says.

    >>> patient_of("person1946_bacteria_4874"), patient_of("NORMAL2-IM-1427-0001")
    ('person1946', 'NORMAL2-IM-1427')
    """
    person = re.match(r"(person\d+)_", stem)
    return person[1] if person else stem.removesuffix("-0001")


def _write(folder: Path, beginnings: Mapping[str, str]) -> None:
    pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))
    with (folder / "manifest.csv").open("w", encoding="utf8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "label", "patient"])
        for path in pictures:
            label = next(name for start, name in beginnings.items() if path.name.startswith(start))
            writer.writerow([path.name, label, patient_of(path.stem)])
