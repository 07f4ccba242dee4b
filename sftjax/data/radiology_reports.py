"""Chest X-ray reports: the findings and the impression that a radiologist wrote of them.

The Indiana University collection of Open-i, as the package torchxrayvision carries it. Its licence
is CC BY-NC-ND 4.0: the text is read where it lies, and nothing here writes it anywhere else.
"""

import hashlib
import pathlib
import re
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from typing import NamedTuple

from sftjax.data.assets import Asset, fetch
from sftjax.data.table import Table

NAME = "radiology-reports"
ARCHIVE = "NLMCXR_reports.tgz"
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}

_LONGEST = 1 << 20
"""Bytes of one report; the longest has some thousand."""
REPORTS = Asset(
    name=NAME,
    package="torchxrayvision",
    version="1.5.7",
    kind="wheel",
    filename="torchxrayvision-1.5.7-py3-none-any.whl",
    sha256="95f6c3475661f3515d4258deb0855bd5d1b1a56e0b65384251d3dd3fa61fac41",
    size=29_002_185,
    unpacked=60_000_000,
    inside="torchxrayvision/data",
    licence="CC BY-NC-ND 4.0 (the reports: no commercial use, no derived texts), Apache-2.0 (the "
    "package)",
    upstream="https://openi.nlm.nih.gov",
    citation="Demner-Fushman et al. (2016), Preparing a collection of radiology examinations for "
    "distribution and retrieval, JAMIA 23(2)",
)


class Reports(NamedTuple):
    """The tables and what was left out of them."""

    tables: dict[str, Table]
    """Split -> `report`, `findings`, `impression`."""
    counts: dict[str, int]


def radiology_reports(archive: str | pathlib.Path | None = None) -> Reports:
    """Read the reports that have both findings and an impression.

    Of reports with the same findings (the same words, whatever the case) only the first is kept;
    a split is drawn by a hash of those words, so nothing that is learned word for word is tested.

    Args:
      archive: `NLMCXR_reports.tgz`; default that of the package, which is fetched if need be.

    Raises:
      ValueError: if the archive holds no such report.
    """
    path = pathlib.Path(archive) if archive else fetch(REPORTS) / ARCHIVE
    columns: dict[str, dict[str, list[str]]] = {
        split: {"report": [], "findings": [], "impression": []} for split in SHARES
    }
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    with tarfile.open(path) as content:
        members = [member for member in content.getmembers() if member.name.endswith(".xml")]
        for member in sorted(members, key=lambda member: _number(member.name)):
            file = content.extractfile(member) if member.isreg() else None
            if file is None or member.size > _LONGEST:
                raise ValueError(f"{path}: {member.name!r} is no report (a link, or too long)")
            counts["reports"] += 1
            parts = {e.get("Label"): (e.text or "").strip() for e in _abstracts(file.read())}
            findings, impression = parts.get("FINDINGS", ""), parts.get("IMPRESSION", "")
            if not (findings and impression):
                counts["left out: no findings or no impression"] += 1
                continue
            words = " ".join(re.findall(r"\w+", findings.casefold()))
            if words in seen:
                counts["left out: same findings"] += 1
                continue
            seen.add(words)
            split = _split(words)
            counts[split] += 1
            row = (pathlib.PurePosixPath(member.name).stem, findings, impression)
            for values, value in zip(columns[split].values(), row, strict=True):
                values.append(value)
    if not seen:
        raise ValueError(f"{path} holds no report with findings and an impression")
    tables = {
        split: Table(values, name=f"{NAME} {split}", split=split)
        for split, values in columns.items()
        if values["report"]
    }
    return Reports(tables, dict(counts))


def _abstracts(content: bytes) -> list[ET.Element]:
    return list(ET.fromstring(content).iter("AbstractText"))


def _number(name: str) -> tuple[int, str]:
    digits = re.findall(r"\d+", name)
    return (int(digits[-1]) if digits else 0), name


def _split(words: str) -> str:
    draw = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") / 2**64
    for split, share in SHARES.items():
        if draw < share:
            return split
        draw -= share
    return "train"
