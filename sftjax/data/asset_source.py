"""Data sets that are fetched by name and are no data sets of TFDS: `asset:NAME[:split]`."""

from collections.abc import Callable

from sftjax.data import debian_synopses, radiology_reports
from sftjax.data.files import read_file
from sftjax.data.table import Table

SPLITS = ("train", "validation", "test")


def _debian(split: str) -> Table:
    return read_file(debian_synopses.debian_synopses() / f"{split}.jsonl", split)


def _reports(split: str) -> Table:
    return radiology_reports.radiology_reports().tables[split]


ASSET_TABLES: dict[str, Callable[[str], Table]] = {
    debian_synopses.NAME: _debian,
    radiology_reports.NAME: _reports,
}
"""What can be read by name; each has the splits train, validation and test."""


def read_asset(name: str, split: str | None = None) -> Table:
    """Read one split of a fetched data set.

    Args:
      name: `NAME` or `NAME:SPLIT`.
      split: which one, where the name does not say.

    Raises:
      ValueError: for a name or a split that there is not.
      RuntimeError: if it cannot be fetched here.
    """
    name, fixed = name_and_split(name)
    split = fixed or split
    if split not in SPLITS:
        wrong = "no split was named" if split is None else f"there is no split {split!r}"
        raise ValueError(
            f"asset:{name}: {wrong}; it has the splits {', '.join(SPLITS)}; name one, as in "
            f"asset:{name}:{SPLITS[0]}"
        )
    return ASSET_TABLES[name](split)


def name_and_split(name: str) -> tuple[str, str | None]:
    """Return the name and the split that a source names, refusing names that are not known.

    >>> name_and_split("debian-synopses:test")
    ('debian-synopses', 'test')
    """
    name, _, split = name.partition(":")
    if name not in ASSET_TABLES:
        raise ValueError(f"there is no asset:{name}; those known are {', '.join(ASSET_TABLES)}")
    return name, split or None
