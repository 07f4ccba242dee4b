"""Which rows of a batch one of several readers needs."""

from typing import NamedTuple


class Share(NamedTuple):
    """Equal parts of a batch's rows: those from `first` up to `stop`, of `shares`."""

    first: int = 0
    stop: int = 1
    shares: int = 1

    def of(self, rows: int) -> slice:
        """Return which of so many rows those are.

        Raises:
          ValueError: if the rows cannot be cut into so many equal parts.

        >>> Share(1, 2, 4).of(32)
        slice(8, 16, None)
        """
        if rows % self.shares:
            raise ValueError(
                f"{rows} rows of a batch cannot be cut into {self.shares} equal parts, one for "
                "each device that rows are dealt out over; make the batch size a multiple of "
                f"{self.shares}"
            )
        size = rows // self.shares
        return slice(self.first * size, self.stop * size)


WHOLE = Share()
"""All rows."""
