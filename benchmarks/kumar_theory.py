"""Does fine-tuning distort good features, and what keeps them: theory, without any data?

    python benchmarks/kumar_theory.py             # under 30 seconds on 2 cores

The two-layer linear model of Kumar et al. 2022 (arXiv:2202.10054). The truth is y = (x A) u, with
5 orthonormal features A of 40 inputs and a unit vector u. The pretrained features are A plus an
error of size eps, made orthonormal again; the head starts at random, of length .5. Training rows
lie in a random subspace of 20 dimensions, tests elsewhere too: the risk out of domain is
|w - w*|^2 of the product w = A u, over inputs of unit covariance. Gradient descent on all 100 rows
until it stands still, for 20 seeds, all at once under vmap:

    LP            the head alone
    FT            features and head, from the random head
    LP-FT         FT from the head of LP
    WiSE .5       half way from LP to LP-FT
    FT+L2-SP .05  FT with features held to the pretrained ones, coupled, strength .05

Expect: at eps .1, out of domain, LP-FT < LP < FT and L2-SP < FT; at eps 1 FT < LP: where features
are bad, fine-tuning them is right.
"""

import argparse
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pairs
from jax import Array

from sftjax.anchor import add_decayed_difference, anchor_of
from sftjax.core import Aux, Batch, Loss, PyTree, combine
from sftjax.train import init, make_step

INPUTS, FEATURES, SUBSPACE, ROWS = 40, 5, 20, 100
ERRORS = (0.1, 0.5, 1.0)
HEAD_LENGTH, OTHER_LENGTHS = 0.5, (0.25, 1.0)
STRENGTH = 0.05
RATE, STEPS = 0.2, 2000
METHODS = ("LP", "FT", "LP-FT", "WiSE .5", "FT+L2-SP .05")


class World(NamedTuple):
    """One draw of the theory's setting."""

    pretrained: dict[str, Array]
    """`features` (INPUTS, FEATURES), orthonormal columns; `head` (FEATURES,), random."""
    batch: dict[str, Array]
    """`x` (ROWS, INPUTS), in the subspace; `y` (ROWS,), without noise."""
    truth: Array
    """w*, (INPUTS,): a unit vector."""
    subspace: Array
    """(INPUTS, SUBSPACE), orthonormal columns."""


class Risk(NamedTuple):
    """Expected squared error beyond the noise."""

    inside: Array
    """On inputs of the training rows' subspace."""
    outside: Array
    """On inputs from everywhere."""


def main() -> None:
    """Compute, print and write."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seeds", type=int, default=20, help="draws for each eps (20)")
    options.add_argument("--output", type=pathlib.Path, help="the JSON (benchmarks/results/)")
    args = options.parse_args()
    watch = pairs.Watch()
    lengths = sorted((HEAD_LENGTH, *OTHER_LENGTHS))
    by_length = {length: risks(args.seeds, length) for length in lengths}
    found = by_length[HEAD_LENGTH]
    tables = [rows_of(found, "outside"), rows_of(found, "inside"), lengths_table(by_length)]
    facts = {f"head of length {length:g}": plain(one) for length, one in by_length.items()}
    pairs.publish("kumar_theory", watch.facts(), tables, {"risks": facts}, args.output)


def risks(seeds: int, head_length: float = HEAD_LENGTH) -> dict[str, Risk]:
    """Return the risks of every method, arrays of (eps, seed)."""
    found = _risks(jnp.arange(seeds), jnp.array(ERRORS), jnp.float32(head_length))
    return {name: jax.tree.map(np.asarray, found[name]) for name in METHODS}


@jax.jit
def _risks(seeds: Array, errors: Array, head_length: Array) -> dict[str, Risk]:
    def one(error: Array, seed: Array) -> dict[str, Risk]:
        world = draw(jax.random.key(seed), error, head_length)
        return {name: risk(params, world) for name, params in methods(world).items()}

    return jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))(errors, seeds)


def draw(key: Array, error: Array | float, head_length: Array | float = HEAD_LENGTH) -> World:
    """Return a world whose pretrained features are wrong by about `error`."""
    truth_key, error_key, space_key, rows_key, unit_key, head_key = jax.random.split(key, 6)
    features = orthonormal(jax.random.normal(truth_key, (INPUTS, FEATURES)))
    # Each column is off by a vector of length about `error`.
    off = jax.random.normal(error_key, features.shape) / jnp.sqrt(INPUTS)
    subspace = orthonormal(jax.random.normal(space_key, (INPUTS, SUBSPACE)))
    x = jax.random.normal(rows_key, (ROWS, SUBSPACE)) @ subspace.T
    truth = features @ unit(jax.random.normal(unit_key, (FEATURES,)))
    pretrained = {
        "features": orthonormal(features + error * off),
        "head": head_length * unit(jax.random.normal(head_key, (FEATURES,))),
    }
    return World(pretrained, {"x": x, "y": x @ truth}, truth, subspace)


def methods(world: World) -> dict[str, PyTree]:
    """Return the params that each method ends with."""
    start, batch = world.pretrained, world.batch
    probed = tune(start, batch, train=("head",))
    probed_then_tuned = tune(probed, batch)
    ends = (
        probed,
        tune(start, batch),
        probed_then_tuned,
        jax.tree.map(lambda a, b: (a + b) / 2, probed, probed_then_tuned),
        tune(start, batch, strength=STRENGTH),
    )
    return dict(zip(METHODS, ends, strict=True))


def tune(
    params: PyTree,
    batch: Batch,
    *,
    train: tuple[str, ...] = ("features", "head"),
    strength: float = 0.0,
) -> PyTree:
    """Return the params after gradient descent on the named leaves, as a user of sftjax writes it.

    With a strength, the features are held to those of `params`; the head is new and free.
    """
    trainable = {name: name in train for name in params}
    # Before the learning rate, with nothing between: a part of the gradient, the paper's L2-SP.
    pull = [add_decayed_difference(strength)] if strength else []
    tx = optax.chain(*pull, optax.sgd(RATE))
    anchor = anchor_of(params, trainable, new=["head"]) if strength else None
    state, fixed = init(params, trainable, tx, jax.random.key(0), anchor=anchor)
    step = make_step(objective, tx)
    state, _ = jax.lax.scan(
        lambda state, _: (step(state, fixed, batch)[0], None), state, length=STEPS
    )
    return combine(state.trainable, fixed.frozen)


def objective(
    params: PyTree, model_state: PyTree, batch: Batch, key: Array | None
) -> tuple[Loss, Aux]:
    """Half the squared error of the two-layer linear model."""
    del model_state, key
    # The product first: the same function for a fifth of the work.
    miss = batch["x"] @ (params["features"] @ params["head"]) - batch["y"]
    return Loss(jnp.sum(miss**2) / 2, jnp.float32(len(miss))), Aux({})


def risk(params: PyTree, world: World) -> Risk:
    """Return the risks of a product of features and head."""
    miss = params["features"] @ params["head"] - world.truth
    return Risk(jnp.sum((miss @ world.subspace) ** 2), jnp.sum(miss**2))


def rows_of(found: dict[str, Risk], place: str) -> list[dict[str, Any]]:
    """Return a table of mean ± standard deviation; outside, in how many seeds it is below FT."""
    rows = []
    for number, error in enumerate(ERRORS):
        row: dict[str, Any] = {f"eps, risk {place} the subspace": f"{error:g}"}
        free = getattr(found["FT"], place)[number]
        for method, one in found.items():
            values = getattr(one, place)[number]
            wins = (
                ""
                if method == "FT" or place == "inside"
                else f" ({int((values < free).sum())}/{len(values)})"
            )
            row[method] = f"{values.mean():.3f} ± {values.std(ddof=1):.3f}{wins}"
        rows.append(row)
    return rows


def lengths_table(found: dict[float, dict[str, Risk]]) -> list[dict[str, Any]]:
    """Return the risk of FT by the length of its random head, which LP never sees."""
    rows = []
    for length, one in found.items():
        row: dict[str, Any] = {"length of the random head": f"{length:g}"}
        for number, error in enumerate(ERRORS):
            free, probed = (one[name].outside[number] for name in ("FT", "LP"))
            row[f"FT at eps {error:g} (better than LP)"] = (
                f"{free.mean():.3f} ({int((free < probed).sum())}/{len(free)})"
            )
        rows.append(row)
    return rows


def plain(found: dict[str, Risk]) -> dict[str, Any]:
    """Return the risks of every seed as JSON."""
    return {
        method: {
            f"eps {error:g}": {
                place: values[number].tolist() for place, values in one._asdict().items()
            }
            for number, error in enumerate(ERRORS)
        }
        for method, one in found.items()
    }


def orthonormal(matrix: Array) -> Array:
    """Return the orthonormal matrix nearest to one of full column rank."""
    left, _, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left @ right


def unit(vector: Array) -> Array:
    """Return the vector scaled to length 1."""
    return vector / jnp.linalg.norm(vector)


if __name__ == "__main__":
    main()
