"""Every kind of model trains on TPU and GPU, as far as a machine without either can tell."""

import sys

import jax
import jax.export
import pytest
from jax.sharding import AbstractMesh

sys.path.insert(0, __file__.rpartition("/")[0])
from family_steps import CONFIGS, SAME, run_of

from sftjax.core import flatten, matches
from sftjax.models import FAMILIES, TENSOR_RULES
from sftjax.train import abstract_batch, abstract_state, automatic, compile_step


def test_every_family_is_here_or_is_one_that_is():
    assert set(FAMILIES) == set(CONFIGS) | set(SAME)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_step_lowers_for_accelerators_on_a_mesh_that_is_not_there(family):
    step, state, fixed, batch = run_of(family)
    mesh = AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    place = automatic(mesh, TENSOR_RULES, smallest=256)
    jitted = compile_step(step, mesh, place).jitted(state, fixed)
    state, fixed = abstract_state(state, fixed, mesh, place)
    cut = {
        path: leaf.sharding.spec
        for path, leaf in flatten(state.trainable).items()
        if any(leaf.sharding.spec)
    }
    named = [path for path in cut if any(matches(rule, path) for rule, _ in TENSOR_RULES)]
    assert [path for path in named if "tensor" in str(cut[path])]
    export = jax.export.export(jitted, platforms=("tpu", "cuda"))
    found = export(state, fixed, abstract_batch(batch, mesh))
    assert found.platforms == ("tpu", "cuda")
    assert found.nr_devices == 8
