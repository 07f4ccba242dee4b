"""The pictures of a job's tables, decoded by one set of workers, and what reports say of them."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from sftjax.data import ASSETS, Images, Processor, Table, decoders, load_images


class Decodes(Protocol):
    """A job that says how its pictures are decoded."""

    @property
    def dataloader_num_workers(self) -> int:
        """Processes that decode; 0 takes threads."""
        ...

    @property
    def skip_corrupt(self) -> bool:
        """Whether pictures that cannot be read are left out, and listed."""
        ...


def decoded(job: Decodes, tables: Mapping[str, Table], processor: Processor) -> dict[str, Images]:
    """Return the pictures of each table.

    Raises:
      ValueError: naming the pictures that cannot be read, unless the job leaves them out.
    """
    with decoders(job.dataloader_num_workers) as workers:
        return {
            name: load_images(table, processor, skip_corrupt=job.skip_corrupt, workers=workers)
            for name, table in tables.items()
        }


def origin_told(source: str) -> list[str]:
    """Return the line of a report that says what an asset's pictures are; none for other sources.

    >>> origin_told("photos/")
    []
    >>> "the average of 152 brains" in origin_told("asset:mni152-slices")[0]
    True
    """
    asset = ASSETS.get(source.removeprefix("asset:")) if source.startswith("asset:") else None
    return [] if asset is None else [f"- source: {asset.citation}; licence: {asset.licence}"]


def left_out_told(corrupt: Sequence[tuple[str, str]]) -> list[str]:
    """Return the lines of a report that list pictures left out, each with its reason.

    >>> left_out_told([("a.png", "it is cut off")])
    ['- 1 pictures could not be read and were left out:', '    - a.png: it is cut off']
    """
    if not corrupt:
        return []
    lines = [f"- {len(corrupt)} pictures could not be read and were left out:"]
    return [*lines, *(f"    - {name}: {reason}" for name, reason in corrupt)]
