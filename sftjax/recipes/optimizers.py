"""`--optim`: what stands in an update where Adam's moments do, by optax.

optax 0.2.8 has no optimizer with 8-bit moments. What takes less memory than AdamW's 8 bytes a
trained parameter: `adamw-bf16` (6), `lion` and `sgd` (4), `lion-bf16` (2), `adafactor` (for a
matrix, next to nothing).
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax

OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adamw": optax.scale_by_adam,
    "adamw-bf16": lambda: optax.scale_by_adam(mu_dtype=jnp.bfloat16),
    "lion": optax.scale_by_lion,
    "lion-bf16": lambda: optax.scale_by_lion(mu_dtype=jnp.bfloat16),
    "adafactor": lambda: optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)),
    "sgd": lambda: optax.trace(0.9),
}
"""Name -> the moments; clipping, decay, anchors, rates and the schedule are the same around all."""

OWN = ("recadam", "difference")
"""Anchors whose optimizer is part of the method."""


def scale_of(optim: str, anchor: str) -> optax.GradientTransformation | None:
    """Return the moments of a named optimizer; None for AdamW's, the default.

    Raises:
      ValueError: if the name is unknown, or the anchor has moments of its own.

    >>> scale_of("adamw", "l2-sp") is None
    True
    """
    if optim not in OPTIMIZERS:
        raise ValueError(f"--optim {optim!r} is unknown; there are: {', '.join(OPTIMIZERS)}")
    if optim == "adamw":
        return None
    if anchor in OWN:
        raise ValueError(
            f"anchor {anchor!r} is an optimizer by itself; leave --optim {optim} out, or hold the "
            "weights by l2-sp"
        )
    return OPTIMIZERS[optim]()
