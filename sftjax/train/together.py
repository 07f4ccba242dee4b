"""Several processes come to the same answer; alone, a process comes to its own.

A signal reaches one process, or all of them at different updates; a file can be read by one and not
by another. Where they then did different things, each would wait for the others for ever.
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from sftjax.train.board import name_of_next, read, the_board, write

LATE = 2
"""How many updates later, at the earliest, a word is acted on: see `together`."""


def together(asked: Callable[[int], bool], *, every: int = 1) -> Callable[[int], bool]:
    """Return a question that all processes answer alike, yes once any of them was asked to stop.

    The first that was asked writes an update's number on the coordinator's board, and every process
    looks there: one small message to one host, no collective, and nobody waits. At update k the
    number is k + 2 or the next that is looked at. A loop that has read the loss of update k, as
    `fit` has when it asks at k + 2, knows that every process had begun it, so the number was on the
    board: no process can have passed it unseen.

    Args:
      asked: this process's own answer. `asked(number)` after each update, with the updates done.
      every: look only at multiples of this, the same in all processes.

    Returns:
      What `fit` takes as `interrupted`; alone, `asked` itself is what it answers.

    Raises:
      ValueError: if `every` is below 1.

    >>> stop = together(lambda number: number >= 3)
    >>> stop(2), stop(3)
    (False, True)
    """
    if every < 1:
        raise ValueError(
            f"every is {every}; look at the board at least at every update, which is 1"
        )
    name, told = name_of_next("stop"), False

    def interrupted(number: int) -> bool:
        nonlocal told
        board = the_board()
        if board is None:
            return asked(number)
        if not told and asked(number):
            write(board, name, str(-(-(number + LATE) // every) * every))
            told = True
        if number % every:
            return False
        found = read(board, name)
        return found is not None and number >= int(found)

    return interrupted


def all_agree(fine: bool) -> bool:
    """Return whether it is fine for every process; each must ask, and all get the same answer.

    >>> all_agree(True), all_agree(False)
    (True, False)
    """
    if jax.process_count() == 1:
        return fine
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(jax.numpy.asarray(fine)).all())


def agreed(numbers: Mapping[str, float]) -> dict[str, float]:
    """Return the first process's numbers, in all of them: for what is decided by them.

    Every process must call it, with the same names in the same order.

    >>> agreed({"eval_loss": 0.25})
    {'eval_loss': 0.25}
    """
    if jax.process_count() == 1:
        return dict(numbers)
    from jax.experimental import multihost_utils

    own = np.array(list(numbers.values()), np.float64).view(np.uint8)  # jax has no float64
    first = np.asarray(multihost_utils.broadcast_one_to_all(own)).view(np.float64)
    return dict(zip(numbers, first.tolist(), strict=True))
