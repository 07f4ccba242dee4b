"""Augmentations of one picture: pure `(key, image) -> image`, to be vmapped with a key per example.

A picture is (H, W, C) float32 between 0 and 1. At strength 0 each of them is the identity.
"""

import jax
import jax.numpy as jnp
from jax import Array

_LUMA = (0.299, 0.587, 0.114)


def flip_left_right(key: Array, image: Array, chance: float = 0.5) -> Array:
    """Mirror the picture with this chance.

    >>> image = jnp.arange(6.0).reshape(1, 3, 2) / 6
    >>> bool((flip_left_right(jax.random.key(0), image, 1.0)[:, ::-1] == image).all())
    True
    """
    return jnp.where(jax.random.bernoulli(key, chance), image[:, ::-1], image)


def flip_up_down(key: Array, image: Array, chance: float = 0.5) -> Array:
    """Turn the picture upside down with this chance (cells and slides have no top)."""
    return jnp.where(jax.random.bernoulli(key, chance), image[::-1], image)


def random_resized_crop(
    key: Array, image: Array, least: float = 0.35, ratio: float = 4 / 3
) -> Array:
    """Cut out a box and enlarge it to the whole (Szegedy et al. 2015).

    Args:
      key: of this example.
      image: (H, W, C).
      least: the box has between this share and all of the area; 1 is the identity if ratio is 1.
      ratio: its proportions are the picture's times a number between 1 / ratio and ratio.
    """
    area, shape, down, across = jax.random.split(key, 4)
    share = jax.random.uniform(area, minval=least, maxval=1.0)
    log_ratio = jnp.log(ratio) * jax.random.uniform(shape, minval=-1.0, maxval=1.0)
    height = jnp.minimum(jnp.sqrt(share * jnp.exp(-log_ratio)), 1.0)
    width = jnp.minimum(jnp.sqrt(share * jnp.exp(log_ratio)), 1.0)
    top = jax.random.uniform(down) * (1 - height)
    left = jax.random.uniform(across) * (1 - width)
    scale = 1 / jnp.stack([height, width])
    start = jnp.stack([top * image.shape[0], left * image.shape[1]])
    # Two small matrix products, which accelerators like better than gathers.
    return jax.image.scale_and_translate(
        image, image.shape, (0, 1), scale, -start * scale, method="linear", antialias=True
    )


def rotate(key: Array, image: Array, degrees: float = 15.0) -> Array:
    """Turn the picture by up to so many degrees either way; the border is drawn out.

    >>> image = jnp.arange(18.0).reshape(3, 3, 2) / 18
    >>> bool((rotate(jax.random.key(0), image, 0.0) == image).all())
    True
    """
    angle = jnp.deg2rad(degrees) * jax.random.uniform(key, minval=-1.0, maxval=1.0)
    return warp(image, turned(angle))


def colour_jitter(key: Array, image: Array, strength: float = 0.4, hue: float = 0.0) -> Array:
    """Change brightness, contrast and saturation by factors in `1 ± strength`, and the hue.

    Args:
      key: of this example.
      image: (H, W, C); of grey only brightness and contrast change.
      strength: 0 is the identity.
      hue: turn the hue by up to this share of the circle (0.1 is much).
    """
    keys = jax.random.split(key, 4)
    factors = [1 + strength * jax.random.uniform(k, minval=-1.0, maxval=1.0) for k in keys[:3]]
    image = jnp.clip(image * factors[0], 0, 1)
    image = jnp.clip(blend(image, jnp.mean(luma(image)), factors[1]), 0, 1)
    if image.shape[-1] == 3:
        image = jnp.clip(blend(image, luma(image), factors[2]), 0, 1)
        if hue:
            turn = 2 * jnp.pi * hue * jax.random.uniform(keys[3], minval=-1.0, maxval=1.0)
            image = jnp.clip(hue_turned(image, turn), 0, 1)
    return image


def erase(
    key: Array, image: Array, chance: float = 0.25, least: float = 0.02, most: float = 0.33
) -> Array:
    """Paint a box of the mean colour with this chance (random erasing, Zhong et al. 2017).

    Args:
      key: of this example.
      image: (H, W, C).
      chance: 0 is the identity.
      least: smallest share of the area.
      most: largest share.
    """
    whether, area, shape, down, across = jax.random.split(key, 5)
    share = jax.random.uniform(area, minval=least, maxval=most)
    log_ratio = jax.random.uniform(shape, minval=jnp.log(0.3), maxval=jnp.log(1 / 0.3))
    height = jnp.minimum(jnp.sqrt(share * jnp.exp(-log_ratio)), 1.0)
    width = jnp.minimum(jnp.sqrt(share * jnp.exp(log_ratio)), 1.0)
    top = jax.random.uniform(down) * (1 - height)
    left = jax.random.uniform(across) * (1 - width)
    inside = box((image.shape[0], image.shape[1]), top, left, top + height, left + width)
    inside &= jax.random.bernoulli(whether, chance)
    return jnp.where(inside[..., None], image.mean((0, 1)), image)


def rand_augment(key: Array, image: Array, number: int = 2, magnitude: float = 9.0) -> Array:
    """Apply so many changes drawn at random, each of one magnitude (Cubuk et al. 2019).

    Drawn from are: nothing, turning (up to 30 degrees at magnitude 10), shearing and shifting along
    either axis (0.3 of the length), brightness, contrast, saturation (0.9 either way), posterizing
    (to 4 bits), solarizing and autocontrast. Equalizing and sharpness are left out. The changes of
    place are combined into one resampling, then the changes of colour follow in their order; so one
    picture costs one gather, however many are drawn.

    Args:
      key: of this example.
      image: (H, W, C).
      number: how many are drawn.
      magnitude: 0 to 10; at 0 all but autocontrast, which has no strength, is the identity, and
        autocontrast is not drawn.
    """
    strength = magnitude / 10
    matrix = jnp.eye(3)
    layers = [jax.random.split(layer, 2) for layer in jax.random.split(key, number)]
    kinds = 12 if magnitude > 0 else 11
    drawn = [(jax.random.randint(k[0], (), 0, kinds), jax.random.bernoulli(k[1])) for k in layers]
    for kind, negative in drawn:
        amount = jnp.where(negative, -strength, strength)
        moves = jnp.stack(
            [
                turned(jnp.deg2rad(30.0) * amount),
                jnp.eye(3).at[0, 1].set(0.3 * amount),
                jnp.eye(3).at[1, 0].set(0.3 * amount),
                jnp.eye(3).at[0, 2].set(0.3 * amount),
                jnp.eye(3).at[1, 2].set(0.3 * amount),
            ]
        )
        place = jnp.clip(kind - 1, 0, 4)
        matrix = matrix @ jnp.where((kind >= 1) & (kind <= 5), moves[place], jnp.eye(3))
    image = warp(image, matrix)
    for kind, negative in drawn:
        amount = jnp.where(negative, -strength, strength)
        levels = 2.0 ** jnp.round(8 - 4 * strength)
        low, high = image.min((0, 1)), image.max((0, 1))
        choices = jnp.stack(
            [
                image,
                image * (1 + 0.9 * amount),
                blend(image, jnp.mean(luma(image)), 1 + 0.9 * amount),
                blend(image, luma(image), 1 + 0.9 * amount),
                # 8 bits keep every shade that an 8-bit file can hold.
                jnp.floor(image * (255 / 256) * levels) / levels * (256 / 255)
                if magnitude > 0
                else image,
                jnp.where(image > 1 - strength, 1 - image, image) if magnitude > 0 else image,
                (image - low) / jnp.maximum(high - low, 1e-6),
            ]
        )
        image = jnp.clip(choices[jnp.clip(kind - 5, 0, 6)], 0, 1)
    return image


def warp(image: Array, matrix: Array) -> Array:
    """Resample the picture: the place `p` of the result shows the place `matrix p` of the picture.

    Args:
      image: (H, W, C).
      matrix: (3, 3), of `(row, column, 1)` between -0.5 and 0.5 from the centre, in units of the
        longer side.

    >>> image = jnp.arange(8.0).reshape(2, 4, 1)
    >>> bool((warp(image, jnp.eye(3)) == image).all())
    True
    """
    height, width, _ = image.shape
    side = max(height, width)
    middle = jnp.array([(height - 1) / 2, (width - 1) / 2])
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    places = jnp.stack([rows - middle[0], columns - middle[1]])
    moved = jnp.einsum("ij,jhw->ihw", matrix[:2, :2], places, precision="highest")
    moved += (matrix[:2, 2] * side + middle)[:, None, None]
    one = lambda plane: jax.scipy.ndimage.map_coordinates(plane, list(moved), 1, mode="nearest")  # noqa: E731
    return jax.vmap(one, in_axes=-1, out_axes=-1)(image)


def turned(angle: Array) -> Array:
    """Return the (3, 3) matrix of a turn."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    zero, one = jnp.zeros_like(cos), jnp.ones_like(cos)
    return jnp.stack([jnp.stack([cos, -sin, zero]), jnp.stack([sin, cos, zero]),
                      jnp.stack([zero, zero, one])])  # fmt: skip


def luma(image: Array) -> Array:
    """Return the (H, W, 1) grey of a picture."""
    return image if image.shape[-1] == 1 else (image @ jnp.array(_LUMA))[..., None]


def blend(image: Array, other: Array, factor: Array | float) -> Array:
    """Return `other + factor (image - other)`; exactly the image at factor 1."""
    return image + (factor - 1) * (image - other)


def hue_turned(image: Array, angle: Array) -> Array:
    """Turn the chroma plane of YIQ, which keeps the luma."""
    to_yiq = jnp.array([[*_LUMA], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    yiq = image @ to_yiq.T
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    i, q = yiq[..., 1], yiq[..., 2]
    # Only the difference goes back, so that no turn is exactly no change.
    change = jnp.stack([jnp.zeros_like(i), (cos - 1) * i - sin * q, sin * i + (cos - 1) * q], -1)
    return image + change @ jnp.linalg.inv(to_yiq).T


def box(size: tuple[int, int], top: Array, left: Array, bottom: Array, right: Array) -> Array:
    """Return (H, W) True inside a box given in shares of the height and width."""
    rows = (jnp.arange(size[0]) + 0.5)[:, None] / size[0]
    columns = (jnp.arange(size[1]) + 0.5)[None, :] / size[1]
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
