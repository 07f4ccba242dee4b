"""One update as a pure function: gradients, optimizer and metrics of the trainable leaves only."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from sftjax.core import (
    Aux,
    Batch,
    Fixed,
    Loss,
    Metrics,
    Objective,
    PyTree,
    Rules,
    ShardingOf,
    TrainState,
    View,
    combine,
    flatten,
    holes,
    is_quantized,
    partition,
    step_key,
)
from sftjax.core.importance import check_finite, check_form
from sftjax.core.placing import AnyMesh
from sftjax.train.on_mesh import MeshStep

Step = Callable[[TrainState, Fixed, Batch], tuple[TrainState, Metrics]]

_VIEW = 0x51E3
"""Folded into a step's key to make the key of its view."""


class _Totals(NamedTuple):
    """Sums over micro-batches."""

    grads: PyTree
    loss: Loss
    metrics: dict[str, Loss]


def init(
    params: PyTree,
    trainable: PyTree,
    tx: optax.GradientTransformation,
    key: Array,
    *,
    anchor: PyTree | None = None,
    importance: PyTree | None = None,
    model_state: PyTree | None = None,
    held_state: PyTree | None = None,
    frozen_dtype: Any = None,
) -> tuple[TrainState, Fixed]:
    """Split params into what moves and what does not, and make the optimizer's first state.

    The trainable leaves are copied, in float32, so that the donated state never takes the caller's
    own params (or the anchor) with it.

    Args:
      params: the full tree.
      trainable: bool tree of the same structure (`Selection.trainable`).
      tx: the optimizer; its state is made for the trainable leaves alone.
      key: the run's PRNG key.
      anchor: as `anchor.anchor_of` gives it.
      importance: of the anchor's structure.
      model_state: statistics that may move (batch_stats).
      held_state: statistics that are held still, of the same structure with the holes swapped;
        `None` holds none.
      frozen_dtype: cast the frozen float leaves, for example to bfloat16; `None` keeps them, and
        quantized ones stay as they are.

    Returns:
      `(state, fixed)` for the step.

    Raises:
      ValueError: if nothing moves, a trainable leaf is not a float array, or the importance has
        another form than the anchor or is not finite.

    >>> params = {"trunk": jnp.ones(3), "head": jnp.ones(2)}
    >>> state, fixed = init(
    ...     params, {"trunk": False, "head": True}, optax.sgd(0.1), jax.random.key(0))
    >>> state.trainable, fixed.frozen["head"]
    ({'head': Array([1., 1.], dtype=float32), 'trunk': None}, None)
    """
    moving, frozen = partition(params, trainable)
    leaves = flatten(moving)
    if not leaves:
        raise ValueError(
            "no leaf is trainable, so the step would do nothing: let `trainable` be true for one "
            "leaf or more"
        )
    for path, leaf in leaves.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{path} has dtype {leaf.dtype} and cannot be trained by gradients; freeze it"
            )
    if importance is not None:
        check_form(importance, {} if anchor is None else anchor)
        check_finite(importance)
    moving = _copied(moving)
    if frozen_dtype is not None:
        frozen = jax.tree.map(
            lambda leaf: (
                leaf.astype(frozen_dtype)
                if not is_quantized(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
                else leaf
            ),
            frozen,
            is_leaf=is_quantized,
        )
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        trainable=moving,
        opt_state=tx.init(moving),
        model_state={} if model_state is None else jax.tree.map(jnp.copy, model_state),
        key=jnp.copy(key),
    )
    if held_state is None:  # all of the statistics move
        held_state = jax.tree.map(lambda _: None, state.model_state)
    fixed = Fixed(frozen, held_state, anchor, importance)
    return state, fixed


def make_step(
    objective: Objective,
    tx: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    view: View | None = None,
    axis: str | None = None,
    grad_norm: bool = True,
) -> Step:
    """Return the update `(state, fixed, batch) -> (state, metrics)`, pure and uncompiled.

    The gradient is taken with respect to the trainable leaves, of the loss's *sum*. Micro-batches
    add their sums and weights, and the division by the weight happens once, so that the result
    does not depend on how the batch was cut.

    Args:
      objective: `(params, model_state, batch, key) -> (Loss, Aux)`.
      tx: the optimizer; it is given `anchor`, `importance`, `grad` (the mean gradient as it came)
        and `grad_fn` (`(trainable, i) -> mean gradient` on this batch) as extra arguments.
      accumulate: number of micro-batches a batch is cut into; must divide its rows.
      view: what the model sees in place of the trainable leaves (mixout, a base to add); the
        gradient is taken through it.
      axis: inside a `pmap` or `shard_map` of your own, the name of its axis: every device brings
        its rows, and sums and weights are added up over it before they are divided. Dropout then
        draws for each device, and batch norm sees one device's rows (its running statistics become
        the mean of all). `compile_step` and `pmap_step` need none, and leave both as they are on
        one device.
      grad_norm: whether the norm of the gradient is among the metrics. It shows in the log, and
        stops a run whose gradient is not finite; it reads every gradient once more, which a small
        batch through a network of many weights feels.

    Returns:
      A `Step`. Its metrics are `loss`, `weight` (what counted), `grad_norm` (over the trainable
      leaves, before clipping) and the objective's own.

    Raises:
      ValueError: when tracing, if `accumulate` does not divide the rows of the batch.

    >>> def objective(params, model_state, batch, key):
    ...     return Loss(jnp.sum((params["w"] - batch["x"]) ** 2), 2.0), Aux({})
    >>> tx = optax.sgd(0.5)
    >>> state, fixed = init({"w": jnp.zeros(2)}, {"w": True}, tx, jax.random.key(0))
    >>> state, metrics = make_step(objective, tx)(state, fixed, {"x": jnp.ones(2)})
    >>> state.trainable["w"], float(metrics["loss"])
    (Array([0.5, 0.5], dtype=float32), 1.0)
    """
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate}; it is a number of micro-batches, 1 or more")
    update = optax.with_extra_args_support(tx).update

    def gradient(trainable: PyTree, fixed: Fixed, model_state: PyTree, batch: Batch, key: Array):
        # The view of the weights is one for all devices, what is drawn for rows is each one's own.
        rows = key if axis is None else jax.random.fold_in(key, jax.lax.axis_index(axis))

        def total(trainable: PyTree) -> tuple[Array, tuple[Loss, Aux]]:
            if view is not None:
                # A key of its own: the objective draws from `key` itself.
                trainable = view(trainable, fixed, jax.random.fold_in(key, _VIEW))
            params = combine(trainable, fixed.frozen)
            held = combine(model_state, fixed.model_state)
            loss, aux = objective(params, held, batch, rows)
            return jnp.asarray(loss.sum, jnp.float32), (loss, aux)

        (_, (loss, aux)), grads = jax.value_and_grad(total, has_aux=True)(trainable)
        return _Totals(grads, loss, aux.metrics), _moving(aux.model_state, model_state)

    def step(state: TrainState, fixed: Fixed, batch: Batch) -> tuple[TrainState, Metrics]:
        key = step_key(state)
        batches = batch if accumulate == 1 else _cut(batch, accumulate)

        def own(trainable: PyTree, model_state: PyTree) -> tuple[_Totals, PyTree]:
            if accumulate == 1:
                return gradient(trainable, fixed, model_state, batches, key)
            return _scan(gradient, trainable, fixed, model_state, batches, key, axis)

        def sums(trainable: PyTree) -> tuple[_Totals, PyTree]:
            if axis is None:
                return own(trainable, state.model_state)
            # Told apart, or `shard_map` would add up the gradients by itself.
            apart = jax.lax.pcast((trainable, state.model_state), axis, to="varying")
            totals, model_state = own(*apart)
            return jax.lax.psum(totals, axis), jax.lax.pmean(model_state, axis)

        def grad_fn(trainable: PyTree, _: object = None) -> PyTree:
            return _mean(sums(trainable)[0])

        totals, model_state = sums(state.trainable)
        grads = _mean(totals)
        updates, opt_state = update(
            grads, state.opt_state, state.trainable, anchor=fixed.anchor,
            importance=fixed.importance, grad=grads, grad_fn=grad_fn,
        )  # fmt: skip
        metrics = {
            "loss": totals.loss.mean,
            "weight": jnp.asarray(totals.loss.weight, jnp.float32),
            **{name: total.mean for name, total in totals.metrics.items()},
        }
        if grad_norm:
            # Of the sums, then scaled: the norm of `grads` would keep XLA from fusing the scale.
            metrics["grad_norm"] = optax.tree.norm(totals.grads) * _scale(totals.loss)
        trainable = optax.apply_updates(state.trainable, updates)
        return TrainState(state.step + 1, trainable, opt_state, model_state, state.key), metrics

    return step


@jax.jit  # one program, not one for each shape
def _copied(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), tree)


def compile_step(
    step: Step, mesh: AnyMesh | None = None, rules: Rules | ShardingOf | None = None
) -> Step:
    """Compile a step with `jit`: the state is donated, `fixed` is an argument that stays.

    Without a mesh, what the inputs lie on decides: sharded inputs compile to a sharded step. On a
    mesh, the state lies by the rules, and moments, anchor, importance and moving statistics with
    the weights that they belong to (see `layout`); rows are dealt out over `data` and `fsdp`, and
    tokens over `sequence`. Each shape of batch compiles once.

    Args:
      step: the pure function.
      mesh: such as `make_mesh("data=2,fsdp=4")`.
      rules: where weights lie: a table of patterns (`models.TENSOR_RULES`), a function of path and
        shape, or None, which cuts large weights over `fsdp`, whatever the tree is.

    >>> step = compile_step(lambda state, fixed, batch: (state, {}))
    """
    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    return MeshStep(step, mesh, rules)


def _scale(loss: Loss) -> Array:
    """Return what turns sums over examples into means."""
    weight = jnp.asarray(loss.weight, jnp.float32)
    return 1.0 / jnp.where(weight > 0, weight, 1.0)


def _mean(totals: _Totals) -> PyTree:
    scale = _scale(totals.loss)
    return jax.tree.map(lambda grad: grad * scale, totals.grads)


def _scan(
    gradient: Callable[..., Any],
    trainable: PyTree,
    fixed: Fixed,
    model_state: PyTree,
    batches: Batch,
    key: Array,
    axis: str | None,
) -> tuple[_Totals, PyTree]:
    """Add up the totals of the micro-batches, which lie along the first axis of `batches`."""

    def body(carry: tuple[_Totals, PyTree], item: tuple[Array, Batch]):
        before, model_state = carry
        index, batch = item
        micro_key = jax.random.fold_in(key, index)
        totals, model_state = gradient(trainable, fixed, model_state, batch, micro_key)
        return (jax.tree.map(jnp.add, before, totals), model_state), None

    first = jax.tree.map(lambda leaf: leaf[0], batches)
    shapes, _ = jax.eval_shape(gradient, trainable, fixed, model_state, first, key)
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    if axis is not None:
        zeros = jax.lax.pcast(zeros, axis, to="varying")
    pieces = jax.tree.leaves(batches)[0].shape[0]
    carry, _ = jax.lax.scan(body, (zeros, model_state), (jnp.arange(pieces), batches))
    return carry


def _cut(batch: Batch, pieces: int) -> Batch:
    """Reshape (B, ...) to (pieces, B / pieces, ...), taking rows in strides of `pieces`.

    Strided rows keep a batch that is sharded over devices sharded: every device holds a part of
    every micro-batch.
    """

    def cut(leaf: Array) -> Array:
        rows = leaf.shape[0]
        if rows % pieces:
            raise ValueError(
                f"{rows} rows cannot be cut into {pieces} equal micro-batches (accumulate); make "
                f"the rows of a batch a multiple of {pieces}"
            )
        return jnp.swapaxes(leaf.reshape(rows // pieces, pieces, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(cut, dict(batch))


def _moving(new: PyTree, old: PyTree) -> PyTree:
    """Keep of an objective's new model state the leaves that are allowed to move."""
    if new is None:
        return old
    return jax.tree.map(lambda keep, leaf: None if keep is None else leaf, old, new, is_leaf=holes)
