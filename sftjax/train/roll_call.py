"""Several processes wait for each other, and hear of one that failed."""

import time

import jax

from sftjax.core import redact
from sftjax.train.board import name_of_next, read, the_board, write
from sftjax.train.interrupt import Interrupted

_HERE, _STOPPED = "here", "stopped"
_EVERY = 0.1
"""Seconds between looks at the board while a process waits for others."""


class RollCall:
    """Where all processes of a run say that they have come so far, or why one of them has not.

    A process that failed is heard at once, where a collective would wait for it.

    >>> RollCall().here()  # alone, there is nobody to wait for
    """

    def __init__(self) -> None:
        self._name, self._said = name_of_next("roll"), False

    def here(self) -> None:
        """Say that this process is here, and wait until all are.

        Raises:
          Interrupted: if another was asked to stop, and so did.
          ValueError: if another failed; gives its reason.
        """
        self._say(_HERE)
        board = the_board()
        missing = [other for other in range(jax.process_count()) if board is not None]
        while missing:
            said = {other: read(board, f"{self._name}/{other}") for other in missing}
            for other, words in said.items():
                if words == _STOPPED:
                    raise Interrupted(None, saved=True)
                if words not in (_HERE, None):
                    raise ValueError(f"process {other} of this run ended: {words}")
            missing = [other for other, words in said.items() if words is None]
            time.sleep(_EVERY if missing else 0)

    def failed(self, error: BaseException) -> None:
        """Say why this process will not come; nothing if it has."""
        words = str(error) or type(error).__name__
        self._say(_STOPPED if isinstance(error, Interrupted) else redact(words))

    def _say(self, words: str) -> None:
        board = the_board()
        if board is not None and not self._said:
            self._said = True
            write(board, f"{self._name}/{jax.process_index()}", words)
