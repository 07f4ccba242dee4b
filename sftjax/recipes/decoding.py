"""The pictures of a job's tables, decoded by one set of workers."""

from collections.abc import Mapping
from typing import Protocol

from sftjax.data import Images, Processor, Table, decoders, load_images


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
