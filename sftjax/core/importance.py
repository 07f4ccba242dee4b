"""What an importance must be to stand beside an anchor, whoever reads the two."""

import jax.numpy as jnp
from jax.core import Tracer

from sftjax.core.paths import PyTree, flatten, nearest


def check_form(importance: PyTree, anchor: PyTree) -> None:
    """Refuse an importance whose paths or shapes are not the anchor's; works while tracing.

    >>> check_form({"w": jnp.ones(3)}, {"w": jnp.zeros(2)})
    Traceback (most recent call last):
    ValueError: the importance of w has shape (3,) and the anchor (2,); find it again ...
    """
    found, held = flatten(importance), flatten(anchor)
    for path in held:
        if path not in found:
            raise ValueError(
                f"the anchor holds {path} and the importance does not (nearest: "
                f"{nearest(path, list(found))}); give `fisher` the anchor of this run"
            )
        if jnp.shape(found[path]) != jnp.shape(held[path]):
            raise ValueError(
                f"the importance of {path} has shape {jnp.shape(found[path])} and the anchor "
                f"{jnp.shape(held[path])}; find it again for this model"
            )
    for path in found:
        if path not in held:
            raise ValueError(
                f"there is an importance of {path}, which is not anchored; give `fisher` the "
                "anchor of this run, or load the importance like it"
            )


def check_finite(importance: PyTree) -> None:
    """Refuse an importance that holds NaN or infinity; what is being traced has no values yet.

    >>> check_finite({"w": jnp.array([1.0, jnp.nan])})
    Traceback (most recent call last):
    ValueError: the importance of w is not finite; ...
    """
    for path, leaf in flatten(importance).items():
        if not isinstance(leaf, Tracer) and not bool(jnp.isfinite(leaf).all()):
            raise ValueError(
                f"the importance of {path} is not finite; the model's outputs overflow on some row "
                "of the data it was found on. Find it again in float32, without that row"
            )
