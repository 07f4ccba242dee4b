"""Train 2N equals train N, save, restore, train N, to the last bit, whatever holds the run.

The pretrained weights and the importance are read from disk at every start, as a new process
does, and by then the trained weights have left them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from sftjax.anchor import (
    Facts,
    adamw,
    anchor_of,
    ewc,
    fisher,
    load_importance,
    mixout,
    normalized,
    recadam,
    save_importance,
    selective_projection_decay,
)
from sftjax.core import combine, flatten, unflatten
from sftjax.objectives import classification, distill_features, distill_logits
from sftjax.select import bernoulli_gradients, fisher_mask, lisa, only_elements
from sftjax.train import compile_step, fit, init, make_step, open_checkpoints, with_reference

SIZE, ROWS, STEPS, CUT = 8, 12, 8, 4
KEY = jax.random.key(7)
NEW = ("head/kernel",)
MOVES = {
    "layer": {"0": {"kernel": False}, "1": {"kernel": True}, "2": {"kernel": True}},
    "old_head": {"kernel": False},
    "head": {"kernel": True},
}
BLOCKS = {
    "layer": {"0": {"kernel": -1}, "1": {"kernel": 0}, "2": {"kernel": 1}},
    "old_head": {"kernel": -1},
    "head": {"kernel": -1},
}


def pretrained(folder):
    """Read the checkpoint of the folder; write it first, if it is not there."""
    path = folder / "model.safetensors"
    if not path.exists():
        shapes = {path: (SIZE, 3 if "head" in path else SIZE) for path in flatten(MOVES)}
        draw = np.random.default_rng(0)
        save_file({k: draw.normal(size=s).astype(np.float32) / 3 for k, s in shapes.items()}, path)
    return unflatten({name: jnp.asarray(leaf) for name, leaf in load_file(path).items()})


def batch_at(number):
    draw = np.random.default_rng([3, number])
    x = draw.normal(size=(ROWS, SIZE)).astype(np.float32)
    return {"x": x, "labels": draw.integers(0, 3, ROWS)}


def features(params, batch, key=None):
    x = batch["x"]
    for name in ("0", "1", "2"):
        x = x + jnp.tanh(x @ params["layer"][name]["kernel"])
    return x


def logits(params, batch, key=None):
    return features(params, batch) @ params["head"]["kernel"]


def old_logits(params, batch, key=None):
    return features(params, batch) @ params["old_head"]["kernel"]


TASK = classification(logits)


class Method(NamedTuple):
    tx: optax.GradientTransformation = adamw(3e-2, weight_decay=0.1)
    objective: object = TASK
    view: object = None
    reference: tuple = ()
    """Outputs of the pretrained model, and their column."""
    weighed: bool = False


def at_start(outputs):
    return lambda params, batch: outputs(params, batch, None)


CHILD = fisher_mask({"layer": {"1": {"kernel": np.arange(64.0).reshape(8, 8)}}}, 0.3)
PULL = optax.chain(
    optax.scale_by_adam(), ewc(2.0), optax.scale_by_learning_rate(optax.linear_schedule(0.05, 0, 9))
)
METHODS = {
    "mixout": Method(view=mixout(0.4)),
    "features": Method(
        objective=distill_features(TASK, features, 1.0),
        reference=(at_start(features), "reference_features"),
    ),
    "logits": Method(
        objective=distill_logits(TASK, old_logits, 1.0),
        reference=(at_start(old_logits), "reference_logits"),
    ),
    "spd": Method(optax.chain(adamw(3e-2), selective_projection_decay())),
    "recadam": Method(recadam(3e-2, num_steps=STEPS, strength=20.0, k=0.5)),
    "ewc": Method(PULL, weighed=True),
    "lisa": Method(lisa(adamw(3e-2), BLOCKS, active=1, every=3, key=KEY)),
    "child-f": Method(optax.chain(bernoulli_gradients(0.3, KEY), adamw(3e-2))),
    "child-d": Method(only_elements(adamw(3e-2), CHILD)),
}
HELD = [name for name in METHODS if name not in ("lisa", "child-f", "child-d")]


def start(name, folder):
    """What a process does first: read the weights, and of an importance the file of the first."""
    params, importance = pretrained(folder), None
    anchor = anchor_of(params, MOVES, new=NEW) if name in HELD else None
    if METHODS[name].weighed:
        path = folder / "fisher.safetensors"
        if not path.exists():
            found = fisher(at_start(old_logits), params, anchor, [batch_at(0)])
            save_importance(path, found, Facts("these", ROWS, "expected"))
        importance = normalized(load_importance(path, anchor, weights="these")[0])
    return init(params, MOVES, METHODS[name].tx, KEY, anchor=anchor, importance=importance)


@functools.cache
def step_of(name):
    method = METHODS[name]
    step = make_step(method.objective, method.tx, view=method.view)
    return compile_step(with_reference(step, *method.reference) if method.reference else step)


def bits(tree):
    def raw(leaf):
        key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()

    return {path: raw(leaf) for path, leaf in flatten(tree).items()}


class Kill(Exception):
    pass


@pytest.mark.parametrize("name", METHODS)
def test_resumed_equals_uninterrupted(name, tmp_path):
    step = step_of(name)
    whole = fit(step, *start(name, tmp_path), batch_at, STEPS)

    def killed(number):
        if number == CUT + 1:
            raise Kill
        return batch_at(number)

    with open_checkpoints(tmp_path / "run") as checkpoints, pytest.raises(Kill):
        fit(step, *start(name, tmp_path), killed, STEPS, checkpoints=checkpoints, save_steps=CUT)
    with open_checkpoints(tmp_path / "run") as checkpoints:
        saved = checkpoints.latest(start(name, tmp_path)[0])
        assert saved is not None
        assert int(saved.state.step) == CUT
        then = flatten(saved.state.trainable)["layer/1/kernel"]
        gone = np.abs(then - flatten(pretrained(tmp_path))["layer/1/kernel"]).max()
        assert gone > 1e-3, "the weights have left the anchor"
        resumed = fit(
            step, *start(name, tmp_path), batch_at, STEPS, checkpoints=checkpoints, save_steps=CUT
        )
    assert bits(resumed.state) == bits(whole.state)


@pytest.mark.parametrize("name", HELD)
def test_an_anchor_taken_at_the_resume_would_end_elsewhere(name, tmp_path):
    """The negative control of the law above."""
    step = step_of(name)
    state, fixed = start(name, tmp_path)
    half = fit(step, state, fixed, batch_at, CUT).state
    anew = anchor_of(combine(half.trainable, fixed.frozen), MOVES, new=NEW)
    right, wrong = (
        fit(step, jax.tree.map(jnp.copy, half), given, batch_at, STEPS).state
        for given in (fixed, fixed._replace(anchor=anew))
    )
    apart = right.trainable["layer"]["1"]["kernel"] - wrong.trainable["layer"]["1"]["kernel"]
    assert np.abs(apart).max() > 1e-4
