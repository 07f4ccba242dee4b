"""`--average`: keep a mean of the weights along a run instead of the last of them.

`ema:DECAY` is an exponential moving average that starts at the pretrained weights, `swa` the plain
mean from the middle of the run on, `swa:SHARE` from that share of the updates on.
"""

from collections.abc import Collection

import optax

from sftjax.anchor import averaged, ema_of_weights, swa
from sftjax.core import PyTree, flatten
from sftjax.recipes.methods import Method


def averaging(
    method: Method, text: str, num_steps: int, trainable: PyTree, new: Collection[str]
) -> Method:
    """Return a method that evaluates and keeps the average of what it would have kept.

    Args:
      method: any that does not average already.
      text: `ema:DECAY`, `swa`, `swa:SHARE`; "" changes nothing.
      num_steps: updates in the run.
      trainable: the leaves that move, holes elsewhere.
      new: paths of leaves without a pretrained value, which start no average.
    """
    if not text:
        return method
    kind, number = read_average(text)
    fresh = [path for path in flatten(trainable) if path in new]
    keep = (
        ema_of_weights(number, new=fresh)
        if kind == "ema"
        else swa(max(1, round(number * num_steps)))
    )
    return method._replace(
        tx=optax.chain(method.tx, keep),
        weights=lambda state: averaged(state.opt_state, state.trainable),
    )


def read_average(text: str) -> tuple[str, float]:
    """Read an average.

    Raises:
      ValueError: if it is none, or its number is outside 0 to below 1.

    >>> read_average("ema:0.999"), read_average("swa")
    (('ema', 0.999), ('swa', 0.5))
    """
    kind, colon, number = text.partition(":")
    try:
        value = float(number) if colon else 0.5
    except ValueError:
        value = -1.0
    if kind not in ("ema", "swa") or not 0.0 <= value < 1.0 or (kind == "ema" and not colon):
        raise ValueError(
            f"--average {text!r}: write ema:DECAY, swa or swa:SHARE (from which share of the "
            "updates on), with a number from 0 to below 1, as in 'ema:0.999' or 'swa:0.75'"
        )
    return kind, value
