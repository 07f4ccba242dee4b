r"""The diagonal Fisher information: how much the outputs mind a change of each weight.

The square of a mean gradient is not it: over a batch of B examples that is about B times too small
near an optimum, where the examples' gradients cancel. So every example is differentiated alone.
"""

from collections.abc import Callable, Iterable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sftjax.core import Batch, PyTree, combine, flatten, holes, partition

LogitsFn = Callable[[PyTree, Batch], Array]
"""`(params, batch) -> logits`, (B, C) or (B, T, C), with nothing random."""

Labels = Literal["expected", "sampled", "given", "normal"]
"""Whose labels the gradients are of: every class by its probability, a draw, the data's own, or a
normal draw around outputs that are no logits."""


def fisher(
    logits_fn: LogitsFn,
    params: PyTree,
    anchored: PyTree,
    batches: Iterable[Batch],
    *,
    labels: Labels = "expected",
    key: Array | None = None,
    chunk: int = 8,
) -> PyTree:
    r"""Return the diagonal Fisher information of some leaves, averaged over the rows of a data set.

    $$ F_i = \frac{1}{N} \sum_n \sum_y p(y \mid x_n)
       \left( \frac{\partial \log p(y \mid x_n)}{\partial w_i} \right)^2 $$

    Compiles once for each shape of batch; leaves that are not anchored cost no gradient.

    Args:
      logits_fn: `(params, batch) -> (B, C)`, C classes; or (B, T, C), where a row's Fisher is the
        sum over the tokens that count.
      params: the whole tree; the Fisher is taken at these values.
      anchored: of the params' structure, which leaves: the anchor itself (`anchor_of`; a hole
        leaves a leaf out), or booleans.
      batches: named arrays whose first axis is the rows. `valid`, (B,) or for tokens (B, T), is 0
        where nothing counts; `index` is ignored.
      labels: "expected" sums over all classes, exactly, at C backward passes a row (T C for
        tokens); "sampled" draws each label from the model, unbiased at one pass; "given" takes the
        column `labels`: the empirical Fisher, biased away from the above where the model is wrong.
        "normal" takes the outputs for the mean of a unit normal, as those of a regression or an
        embedding are: the mean of $\sum_j (\partial f_j / \partial w_i)^2$, at one pass a row.
      key: PRNG key of the draws, for "sampled" and "normal".
      chunk: examples differentiated at a time. Memory is about `2 * chunk` copies of the anchored
        leaves, and the activations of `chunk` rows.

    Returns:
      Float32 (float64 for float64 leaves) of the params' structure, holes where not anchored.

    Raises:
      ValueError: if no leaf is anchored, one is not a float array, no row counts, or the labels,
        the key or the logits are not as above.

    References:
      Kirkpatrick et al., *Overcoming catastrophic forgetting in neural networks*, 2017,
      arXiv:1612.00796. Kunstner et al., *Limitations of the empirical Fisher approximation*, 2019,
      arXiv:1905.12558

    >>> params = {"w": jnp.zeros((1, 2)), "b": jnp.zeros(2)}
    >>> found = fisher(
    ...     lambda params, batch: batch["x"] @ params["w"] + params["b"],
    ...     params, {"w": True, "b": False}, [{"x": jnp.array([[1.0], [3.0]])}])
    >>> found["w"].round(4), found["b"]  # mean of x^2 p (1 - p)
    (Array([[1.25, 1.25]], dtype=float32), None)
    """
    if labels not in get_args(Labels):
        raise ValueError(f"labels is {labels!r}; choose one of {', '.join(get_args(Labels))}")
    if labels in ("sampled", "normal") and key is None:
        raise ValueError(f"{labels} labels need a key, for example key=jax.random.key(0)")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it is a number of examples, 1 or more")
    moving, frozen = _split(params, anchored)

    def add(
        squares: PyTree, moving: PyTree, frozen: PyTree, batch: Batch, counts: Array, key: Array
    ) -> PyTree:
        rows = counts.shape[0]
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))

        def one(columns: Batch, counts: Array, key: Array) -> PyTree:
            return _squares(logits_fn, labels, moving, frozen, columns, counts, key)

        def body(squares: PyTree, piece: tuple[Batch, Array, Array]) -> tuple[PyTree, None]:
            each = jax.vmap(one)(*piece)
            return jax.tree.map(lambda total, part: total + part.sum(0), squares, each), None

        return jax.lax.scan(body, squares, _cut(dict(batch), counts, keys, chunk))[0]

    add = jax.jit(add, donate_argnums=0)
    squares, total = jax.tree.map(jnp.zeros_like, moving), 0
    key = jax.random.key(0) if key is None else key  # folded in, but never drawn from
    for number, batch in enumerate(batches):
        columns = {name: column for name, column in batch.items() if name not in ("index", "valid")}
        counts = _counts(number, batch, columns, labels)
        total += int(np.sum(counts.reshape(len(counts), -1).any(-1)))
        squares = add(squares, moving, frozen, columns, counts, jax.random.fold_in(key, number))
    if total == 0:
        raise ValueError("no row counts: the batches are empty, already used up, or all fillers")
    return jax.tree.map(lambda square: square / total, squares)


def _squares(
    logits_fn: LogitsFn,
    labels: Labels,
    moving: PyTree,
    frozen: PyTree,
    columns: Batch,
    counts: Array,
    key: Array,
) -> PyTree:
    """Return the (expected) squared gradient of one example's log-likelihood."""
    example = {name: column[None] for name, column in columns.items()}

    def logits_of(moving: PyTree) -> Array:
        logits = logits_fn(combine(moving, frozen), example)
        _check_logits(logits, counts, fewest=1 if labels == "normal" else 2)
        return logits[0].astype(jnp.promote_types(logits.dtype, jnp.float32))

    logits, pullback = jax.vjp(logits_of, moving)
    probabilities = jax.nn.softmax(logits)
    counts = counts[..., None].astype(logits.dtype)

    def square(score: Array) -> PyTree:
        return jax.tree.map(jnp.square, pullback(score)[0])

    if labels == "normal":
        return square(counts * jax.random.normal(key, logits.shape, logits.dtype))
    if labels != "expected":
        drawn = jax.random.categorical(key, logits) if labels == "sampled" else columns["labels"]
        # A label below 0 (a token that does not count) is a row of zeros here, and counts 0.
        chosen = jnp.arange(logits.shape[-1]) == drawn[..., None]
        return square(counts * (chosen - probabilities))

    def add(total: PyTree, number: Array) -> tuple[PyTree, None]:
        chosen = (jnp.arange(logits.size) == number).reshape(logits.shape)
        token = jnp.any(chosen, axis=-1, keepdims=True)
        weight = jnp.sum(jnp.where(chosen, probabilities * counts, 0.0))
        score = jnp.sqrt(weight) * jnp.where(token, chosen - probabilities, 0.0)
        return jax.tree.map(jnp.add, total, square(score)), None

    zeros = jax.tree.map(jnp.zeros_like, moving)
    return jax.lax.scan(add, zeros, jnp.arange(logits.size))[0]


def _split(params: PyTree, anchored: PyTree) -> tuple[PyTree, PyTree]:
    """Return the leaves to differentiate, at least float32, and the rest."""
    mask = jax.tree.map(
        lambda leaf: bool(leaf) if isinstance(leaf, bool | np.bool_) else leaf is not None,
        anchored,
        is_leaf=holes,
    )
    moving, frozen = partition(params, mask)
    leaves = flatten(moving)
    if not leaves:
        raise ValueError(
            "no leaf is anchored: there is nothing to take the Fisher of; give "
            "anchor_of(params, trainable) of a selection that moves a pretrained leaf"
        )
    for path, leaf in leaves.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{path} has dtype {leaf.dtype}, which has no gradient; leave it out")
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32)), moving
    ), frozen


def _cut(columns: Batch, counts: Array, keys: Array, chunk: int) -> tuple[Batch, Array, Array]:
    """Reshape (B, ...) to (pieces, chunk, ...), filled up with rows that do not count.

    Rows are taken in strides, so that a batch sharded over devices stays sharded in every chunk.
    """
    rows = counts.shape[0]
    chunk = min(chunk, rows)
    pieces = -(-rows // chunk)

    def cut(leaf: Array, filler: Array) -> Array:
        leaf = jnp.concatenate([leaf, jnp.repeat(filler, pieces * chunk - rows, axis=0)])
        return jnp.swapaxes(leaf.reshape(chunk, pieces, *leaf.shape[1:]), 0, 1)

    # Copies of a real row: what a model makes of zeros need not be finite.
    columns, keys = jax.tree.map(lambda leaf: cut(leaf, leaf[:1]), (columns, keys))
    return columns, cut(counts, jnp.zeros_like(counts[:1])), keys


def _counts(number: int, batch: Batch, columns: Batch, labels: Labels) -> np.ndarray:
    """Return what counts, (B,) or (B, T), after a look at the batch's labels."""
    if not columns:
        raise ValueError(
            f"batch {number} has no column beside `index` and `valid`, so logits_fn has nothing to "
            "read"
        )
    rows = np.shape(next(iter(columns.values())))[0]
    valid = batch.get("valid")
    counts = np.ones(rows, np.float32) if valid is None else np.asarray(valid, np.float32)
    if counts.ndim not in (1, 2) or counts.shape[0] != rows:
        raise ValueError(
            f"batch {number} has {rows} rows and `valid` of shape {counts.shape}; expected "
            f"({rows},), or ({rows}, T) for tokens"
        )
    if labels == "given":
        if "labels" not in batch:
            raise ValueError(f"batch {number} has no column `labels`, which labels='given' reads")
        given = np.asarray(batch["labels"])
        if given.shape != counts.shape or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(
                f"batch {number}: `labels` is {given.dtype} {given.shape}; the Fisher of classes "
                f"needs integers {counts.shape}"
            )
        if np.any((given < 0) & (counts > 0)):
            raise ValueError(
                f"batch {number} has a negative label that counts; set `valid` to 0 where there is "
                "no label"
            )
    return counts


def _check_logits(logits: Array, counts: Array, fewest: int) -> None:
    """Refuse, while tracing, logits that are not one example's."""
    if logits.ndim != counts.ndim + 2 or logits.shape[0] != 1:
        tokens = "; logits of tokens, (B, T, C), need `valid` (B, T)" if logits.ndim == 3 else ""
        raise ValueError(
            f"logits_fn gave logits of shape {logits.shape} for one row, and `valid` has "
            f"{counts.ndim + 1} axes; expected (1, C){tokens}"
        )
    if logits.shape[1:-1] != counts.shape:
        raise ValueError(
            f"logits_fn gave {logits.shape[1:-1]} tokens a row, and `valid` has {counts.shape}"
        )
    if logits.shape[-1] < fewest:
        raise ValueError(
            "logits_fn gave a single logit: one class is certain, and its Fisher is zero. For a "
            "yes/no output give the two logits (0, z)"
        )
