"""Where a model of pictures looks: Grad-CAM of a CNN, the rollout of a transformer's attention."""

import jax
import jax.numpy as jnp
import numpy as np

from sftjax.core import PyTree
from sftjax.evaluate import as_grid, attention_rollout, grad_cam
from sftjax.models import ImageModel, split
from sftjax.models.image_model import IMAGE_FAMILIES

FINE = 4
"""Places along a side that a map must have for Grad-CAM to show anything."""


def looks(
    model: ImageModel, params: PyTree, pixels: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, str]:
    """Return where a model looks when it speaks of a class.

    Args:
      model: with a head of classes.
      params: plain ones.
      pixels: (N, H, W, C) float32, normalized.
      classes: (N,) which class's evidence is shown (a rollout has none: it shows what is read).

    Returns:
      (N, h, w) maps, and the name of the method.
    """
    x = jnp.asarray(pixels)
    if IMAGE_FAMILIES[model.family].patched:
        weights = jax.jit(model.attentions)(params, {"pixel_values": x})
        a = model.architecture
        rolled = attention_rollout(weights, skip=a.prefix)
        grid = (x.shape[1] // a.patch, x.shape[2] // a.patch)
        return np.asarray(as_grid(rolled, grid)), "Attention rollout"
    cut = _finest(model, params, x)
    lower, upper = split(model, cut)

    @jax.jit
    def cam(params: PyTree, x: jax.Array, classes: jax.Array) -> jax.Array:
        features = lower(params, {"pixel_values": x})
        rest = lambda h: upper(params, {"hidden": h, "pixel_values": x}, None)  # noqa: E731
        return grad_cam(rest, features, classes)

    maps = cam(params, x, jnp.asarray(classes))
    return np.asarray(maps), f"Grad-CAM above block {cut} of {model.num_blocks}"


def _finest(model: ImageModel, params: PyTree, x: jax.Array) -> int:
    """Return the highest cut whose map is fine enough to be looked at."""
    for cut in range(model.num_blocks, 0, -1):
        shape = jax.eval_shape(split(model, cut).lower, params, {"pixel_values": x[:1]}).shape
        if min(shape[1:3]) >= FINE:
            return cut
    return 1
