"""Augmentation inside the jitted step, chosen by words, each example with a key of its own.

`augmentation(["crop:0.35", "flip", "mixup:0.2"], processor, num_classes=10)` is a pure function
`(key, batch) -> batch` for `objectives.augmented`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.core import Batch
from sftjax.data import augment_pixels as pixels
from sftjax.data.processor import Processor

Augment = Callable[[Array | None, Batch], Batch]
"""`(key, batch) -> batch`; `key=None` only normalizes."""

Change = Callable[[Array, Array], Array]
"""`(key, image) -> image`."""

ONE: dict[str, tuple[Callable[..., Array], tuple[float, ...]]] = {
    "crop": (pixels.random_resized_crop, (0.35, 4 / 3)),
    "flip": (pixels.flip_left_right, (0.5,)),
    "flip-vertical": (pixels.flip_up_down, (0.5,)),
    "rotate": (pixels.rotate, (15.0,)),
    "colour": (pixels.colour_jitter, (0.4, 0.0)),
    "randaugment": (pixels.rand_augment, (2, 9.0)),
    "erase": (pixels.erase, (0.25, 0.02, 0.33)),
}
"""Word -> the change of one picture, and its numbers where the word gives none."""

MIXES = ("mixup", "cutmix")
"""Words of changes that mix two pictures and their labels; the number is the alpha of Beta."""


def augmentation(
    words: Sequence[str], processor: Processor, num_classes: int | None = None
) -> Augment:
    """Compose changes by name, in order: `name[:number[:number]]`.

    | word | change | default numbers |
    |---|---|---|
    | `crop:least:ratio` | random resized crop | 0.35, 1.33 |
    | `flip:chance`, `flip-vertical:chance` | mirror | 0.5 |
    | `rotate:degrees` | turn | 15 |
    | `colour:strength:hue` | brightness, contrast, saturation, hue | 0.4, 0 |
    | `randaugment:number:magnitude` | RandAugment | 2, 9 |
    | `erase:chance:least:most` | random erasing | 0.25, 0.02, 0.33 |
    | `mixup:alpha`, `cutmix:alpha` | two pictures and labels; one of both, if both | 0.2, 1 |

    The key of an example is `fold_in(key, index)`, so what happens to a row depends on the step's
    key and the row alone, not on its neighbours, its place in the batch or the devices; the partner
    of a mix is its mirror image in the batch. A mix turns `labels` into (B, K) float32.

    Args:
      words: in the order of their application.
      processor: normalizes the result, and what undoes it where pictures come normalized.
      num_classes: K, which mixing needs of integer labels.

    Returns:
      `(key, batch) -> batch` with `pixel_values` (B, H, W, C) float32, normalized.

    Raises:
      ValueError: for an unknown word, too many or bad numbers, or a mix without `num_classes`.

    >>> augment = augmentation(["flip", "erase"], Processor((4, 4)))
    >>> batch = {"pixel_values": jnp.zeros((2, 4, 4, 3), jnp.uint8), "index": jnp.arange(2)}
    >>> augment(jax.random.key(0), batch)["pixel_values"].shape
    (2, 4, 4, 3)
    """
    parsed = [parsed_word(word) for word in words]
    changes = [(ONE[name][0], numbers) for name, numbers in parsed if name in ONE]
    mixes = {name: numbers[0] for name, numbers in parsed if name in MIXES}
    if mixes and num_classes is None:
        raise ValueError(f"{', '.join(mixes)} mixes labels and needs num_classes")
    classes = num_classes or 0
    mean = jnp.asarray(processor.mean, jnp.float32)
    std = jnp.asarray(processor.std, jnp.float32)

    def one(key: Array, image: Array) -> Array:
        for number, (change, numbers) in enumerate(changes):
            image = change(jax.random.fold_in(key, number), image, *numbers)
        return image

    def augment(key: Array | None, batch: Batch) -> Batch:
        images = unit(batch["pixel_values"], mean, std)
        out = dict(batch)
        if key is not None:
            keys = example_keys(key, batch, len(images))
            images = jax.vmap(one)(keys, images) if changes else images
            if mixes:
                labels = batch["labels"]
                if jnp.issubdtype(labels.dtype, jnp.integer):
                    labels = jax.nn.one_hot(labels, classes, dtype=jnp.float32)
                images, out["labels"] = _mixed(keys, images, labels, mixes)
        out["pixel_values"] = (images - mean) / std
        return out

    return augment


def example_keys(key: Array, batch: Batch, rows: int) -> Array:
    """Return a key of every row: of its `index` in the table, or of its place where it has none.

    >>> example_keys(jax.random.key(0), {"index": jnp.array([3, -1])}, 2).shape
    (2,)
    """
    index = jnp.asarray(batch.get("index", jnp.arange(rows)))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index.astype(jnp.uint32))


def unit(values: Array, mean: Array, std: Array) -> Array:
    """Return pixels as float32 between 0 and 1: integers are scaled, floats were normalized."""
    if jnp.issubdtype(values.dtype, jnp.integer):
        return values.astype(jnp.float32) / jnp.iinfo(values.dtype).max
    return values.astype(jnp.float32) * std + mean


def mixup(keys: Array, images: Array, labels: Array, alpha: float) -> tuple[Array, Array]:
    r"""Mix every picture with its partner (Zhang et al. 2017): $\lambda a + (1 - \lambda) b$.

    Args:
      keys: (B,), one an example; $\lambda \sim \mathrm{Beta}(\alpha, \alpha)$ is drawn from it.
      images: (B, H, W, C).
      labels: (B, K), distributions.
      alpha: 0 mixes nothing.

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> _, labels = mixup(keys, jnp.zeros((2, 1, 1, 1)), jnp.eye(2), 0.5)
    >>> bool(jnp.allclose(labels.sum(-1), 1))
    True
    """
    if alpha == 0:
        return images, labels
    share = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)
    at = share[:, None, None, None]
    return (
        at * images + (1 - at) * images[::-1],
        share[:, None] * labels + (1 - share[:, None]) * labels[::-1],
    )


def cutmix(keys: Array, images: Array, labels: Array, alpha: float) -> tuple[Array, Array]:
    r"""Paste a box of the partner into every picture (Yun et al. 2019), labels by pixels.

    The box has the share $1 - \lambda$ of the area before it is cut at the border; labels are mixed
    by the pixels that were pasted. Arguments as `mixup`.
    """
    if alpha == 0:
        return images, labels

    def inside(key: Array) -> Array:
        draw, down, across = jax.random.split(key, 3)
        half = jnp.sqrt(1 - jax.random.beta(draw, alpha, alpha)) / 2
        row, column = jax.random.uniform(down), jax.random.uniform(across)
        sides = (row - half, column - half, row + half, column + half)
        return pixels.box((images.shape[1], images.shape[2]), *sides)

    masks = jax.vmap(inside)(keys)
    pasted = masks.mean((1, 2))[:, None]
    mixed = jnp.where(masks[..., None], images[::-1], images)
    return mixed, (1 - pasted) * labels + pasted * labels[::-1]


def _mixed(
    keys: Array, images: Array, labels: Array, mixes: dict[str, float]
) -> tuple[Array, Array]:
    draw, choose = (jax.vmap(jax.random.fold_in, (0, None))(keys, 2**16 + n) for n in range(2))
    how = {"mixup": mixup, "cutmix": cutmix}
    made = [how[name](draw, images, labels, alpha) for name, alpha in mixes.items()]
    if len(made) == 1:
        return made[0]
    first = jax.vmap(jax.random.bernoulli)(choose)
    return (
        jnp.where(first[:, None, None, None], made[0][0], made[1][0]),
        jnp.where(first[:, None], made[0][1], made[1][1]),
    )


def parsed_word(word: str) -> tuple[str, tuple[float, ...]]:
    """Return the name and the numbers of a word, those it leaves out filled in.

    Raises:
      ValueError: for an unknown word, too many or bad numbers.

    >>> parsed_word("crop:0.5")
    ('crop', (0.5, 1.3333333333333333))
    """
    name, *given = word.split(":")
    defaults = ONE[name][1] if name in ONE else {"mixup": (0.2,), "cutmix": (1.0,)}.get(name)
    if defaults is None:
        raise ValueError(f"augmentation {word!r} is none of {', '.join([*ONE, *MIXES])}")
    if len(given) > len(defaults):
        most = "one number" if len(defaults) == 1 else f"{len(defaults)} numbers"
        raise ValueError(
            f"augmentation {word!r}: {name} takes {most} at most and {len(given)} are given; leave "
            "the last out"
        )
    try:
        numbers = [float(number) for number in given]
    except ValueError as error:
        usual = ":".join(f"{number:g}" for number in defaults)
        raise ValueError(
            f"augmentation {word!r}: what follows a colon must be a number, as in {name}:{usual}"
        ) from error
    if any(number < 0 for number in numbers):
        raise ValueError(f"augmentation {word!r}: its numbers must not be negative")
    filled = (*numbers, *defaults[len(numbers) :])
    return name, (int(filled[0]), filled[1]) if name == "randaugment" else filled
