"""However the devices are arranged, a run is the same run: losses, weights, and what is sent."""

import pathlib
import sys

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "train"))
from mesh_cases import CASES, STEPS, rules

from sftjax.core import flatten
from sftjax.train import compile_step, copies, first_copy, make_mesh, place_state, pmap_step

MESHES = (
    "data=8", "fsdp=8", "data=2,fsdp=4", "data=2,fsdp=2,tensor=2", "fsdp=2,sequence=2,tensor=2",
)  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A run, and what it gives on one device."""
    made = CASES[request.param]()
    return request.param, made, ran(made, compile_step(made.step))


def ran(case, step, state=None, fixed=None, at=None):
    """Return the losses and the final weights and statistics."""
    state, losses = case.again() if state is None else state, []
    fixed, at = fixed or case.fixed, at or case.batches.at
    for number in range(STEPS):
        state, metrics = step(state, fixed, at(number))
        losses.append(np.asarray(metrics["loss"]).reshape(-1)[0])
    return losses, state


def same(found, expected, name):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, err_msg=name)
    for path, leaf in flatten((expected[1].trainable, expected[1].model_state)).items():
        other = flatten((found[1].trainable, found[1].model_state))[path]
        np.testing.assert_allclose(other, leaf, rtol=0, atol=1e-5, err_msg=f"{name}: {path}")


@pytest.mark.parametrize("description", MESHES)
def test_a_mesh_changes_nothing(case, description):
    name, made, expected = case
    mesh = make_mesh(description)
    step = compile_step(made.step, mesh, rules(mesh))
    state, fixed = place_state(made.again(), made.fixed, mesh, rules(mesh))
    found = ran(made, step, state, fixed)
    same(found, expected, f"{name} on {description}")


def test_pmap_changes_nothing(case):
    name, made, expected = case

    def at(number):
        batch = made.batches.at(number)
        return {name: leaf.reshape(8, -1, *leaf.shape[1:]) for name, leaf in batch.items()}

    found = ran(made, pmap_step(made.step), copies(made.again()), copies(made.fixed), at)
    for leaf in jax.tree.leaves(found[1].trainable):
        assert all(np.array_equal(leaf[0], other) for other in leaf[1:])
    same((found[0], first_copy(found[1])), expected, f"{name} as pmap")
