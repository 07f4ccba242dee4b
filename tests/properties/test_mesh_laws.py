"""However the devices are arranged, a run is the same run: losses, weights, and what is sent.

SFTJAX_EVERY_MESH=1 runs every case on every mesh, and as pmap (10 minutes of one core).
"""

import os
import pathlib
import re
import sys

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "train"))
from mesh_cases import CASES, STEPS, Numbers, mlp, rules

from sftjax.core import flatten, nbytes
from sftjax.train import (
    abstract_batch,
    abstract_state,
    compile_step,
    compile_sweep_step,
    copies,
    first_copy,
    make_mesh,
    make_sweep_step,
    place_runs,
    place_state,
    pmap_step,
    stack_states,
)

MESHES = (
    "data=8", "fsdp=8", "data=2,fsdp=4", "data=2,fsdp=2,tensor=2", "fsdp=2,sequence=2,tensor=2",
)  # fmt: skip
OFTEN = {"mlp": (*MESHES, "pmap"), "resnet": MESHES[3:4]}
EVERY = bool(os.environ.get("SFTJAX_EVERY_MESH"))
PAIRS = [
    (name, mesh)
    for name in CASES
    for mesh in ((*MESHES, "pmap") if EVERY else OFTEN.get(name, ()))
]  # fmt: skip
_alone = {}


def alone(name):
    """Return a run, and what it gives on one device."""
    if name not in _alone:
        made = CASES[name](accumulate=2 if name == "mlp" else 1)
        _alone[name] = made, ran(made, compile_step(made.step))
    return _alone[name]


def ran(case, step, state=None, fixed=None, at=None):
    """Return the losses and the final weights and statistics."""
    state, losses = case.again() if state is None else state, []
    fixed, at = fixed or case.fixed, at or case.batches.at
    for number in range(STEPS):
        state, metrics = step(state, fixed, at(number))
        losses.append(np.asarray(metrics["loss"]).reshape(-1)[0])
    return losses, state


def same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    after = flatten((found[1].trainable, found[1].model_state))
    for path, leaf in flatten((expected[1].trainable, expected[1].model_state)).items():
        np.testing.assert_allclose(after[path], leaf, rtol=0, atol=1e-5, err_msg=path)


def cut(batch):
    """Cut the rows along a first axis of eight devices."""
    return {name: leaf.reshape(8, -1, *leaf.shape[1:]) for name, leaf in batch.items()}


@pytest.mark.parametrize(("name", "described"), PAIRS)
def test_the_devices_change_nothing(name, described):
    made, expected = alone(name)
    if described == "pmap":
        found = ran(
            made, pmap_step(made.step), copies(made.again()), copies(made.fixed),
            lambda number: cut(made.batches.at(number)),
        )  # fmt: skip
        for leaf in jax.tree.leaves(found[1].trainable):
            assert all(np.array_equal(leaf[0], other) for other in leaf[1:])
        same((found[0], first_copy(found[1])), expected)
        return
    mesh = make_mesh(described)
    step = compile_step(made.step, mesh, rules(mesh))
    state, fixed = place_state(made.again(), made.fixed, mesh, rules(mesh))
    same(ran(made, step, state, fixed), expected)


SENT = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}


def sent(step, case, mesh):
    """Return, by kind, the bytes that the compiled program's exchanges give."""
    place = rules(mesh)
    state, fixed = abstract_state(case.state, case.fixed, mesh, place)
    batch = abstract_batch(case.batches.at(0), mesh)
    found = {}
    for shapes, kind in SENT.findall(step.lower(state, fixed, batch).compile().as_text()):
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            count = np.prod([int(size) for size in sizes.split(",") if size], dtype=int)
            found[kind] = found.get(kind, 0) + int(count) * SIZES[dtype]
    return found


@pytest.mark.parametrize("name", ["bert", "mlp"])
def test_data_parallel_sends_gradients_of_what_moves_and_nothing_else(name):
    """Frozen weights are never gathered, and no gradient of theirs is added up."""
    made, mesh = CASES[name](), make_mesh("data=8")
    found = sent(compile_step(made.step, mesh, rules(mesh)), made, mesh)
    moving = nbytes(made.state.trainable)
    assert set(found) == {"all-reduce"}
    assert moving <= found["all-reduce"] <= moving + 64  # sums and weights of loss and metrics
    if name == "bert":
        assert moving < 0.9 * nbytes((made.state.trainable, made.fixed.frozen))


def test_fsdp_fetches_each_weight_once_and_holds_an_eighth():
    made, mesh = CASES["mlp"]()._replace(batches=Numbers(128)), make_mesh("fsdp=8")
    step = compile_step(made.step, mesh, rules(mesh))
    weights = nbytes(made.state.trainable)
    found = sent(step, made, mesh)
    assert found["all-gather"] == weights
    assert weights <= found["all-reduce"] <= weights + 64
    few = sent(step, made._replace(batches=Numbers(16)), mesh)
    assert few["all-gather"] < weights  # the compiler sends the few rows instead
    state, _ = place_state(made.again(), made.fixed, mesh, rules(mesh))
    for leaf in jax.tree.leaves((state.trainable, state.opt_state)):
        if leaf.ndim:
            assert leaf.addressable_shards[0].data.size == leaf.size // 8


def test_what_belongs_to_a_weight_lies_where_it_does():
    made, mesh = CASES["bert"](), make_mesh("data=2,fsdp=2,tensor=2")
    state, fixed = place_state(made.again(), made.fixed, mesh, rules(mesh))
    kernel = "bert/encoder/layer/0/intermediate/dense/kernel"
    where = flatten(state.trainable)[kernel].sharding
    assert where.spec == PartitionSpec("fsdp", "tensor")
    moments = {p: leaf for p, leaf in flatten(state.opt_state).items() if p.endswith(kernel)}
    others = [flatten(fixed.anchor)[kernel], flatten(fixed.importance)[kernel]]
    assert len(moments) == 2
    assert all(leaf.sharding == where for leaf in (*moments.values(), *others))
    before = jax.tree.leaves((state, fixed))
    again = jax.tree.leaves(place_state(state, fixed, mesh, rules(mesh)))
    assert all(one is other for one, other in zip(before, again, strict=True)), "nothing moves"


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_a_step_inside_a_map_of_ones_own(how):
    """Sums and weights are added up over the axis, then divided; rows of a device may not count."""
    made, inside = mlp(2, quiet=True), mlp(2, axis="rows", quiet=True)
    expected = ran(made, compile_step(made.step))
    if how == "pmap":
        step, at = jax.pmap(inside.step, axis_name="rows"), lambda n: cut(made.batches.at(n))
        found = ran(inside, step, copies(inside.again()), copies(inside.fixed), at)
        found = found[0], first_copy(found[1])
    else:
        mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
        whole, rows = PartitionSpec(), PartitionSpec("rows")
        mapped = jax.shard_map(
            inside.step, mesh=mesh, in_specs=(whole, whole, rows), out_specs=whole
        )
        found = ran(inside, jax.jit(mapped))
    same(found, expected)


def test_a_sweep_lies_on_the_mesh():
    made = CASES["mlp"]()
    settings = {"learning_rate": np.array([0.01, 0.02, 0.03, 0.04], np.float32)}
    many = make_sweep_step(lambda setting: made.step_of(optax.adam(setting["learning_rate"])))
    results = []
    for described in ("", "sweep=2,data=2,fsdp=2"):
        states, fixed, given = stack_states([made.again()] * 4), made.fixed, dict(settings)
        step = compile_sweep_step(many)
        if described:
            mesh = make_mesh(described)
            states, fixed, given = place_runs(states, fixed, given, mesh, rules(mesh))
            step = compile_sweep_step(many, mesh, rules(mesh))
        for number in range(STEPS):
            states, metrics = step(states, fixed, given, made.batches.at(number))
        if described:
            spec = states.trainable["in"].sharding.spec
            assert spec == PartitionSpec("sweep", None, "fsdp")
            assert states.opt_state[0].mu["in"].sharding.spec == spec
        results.append((np.asarray(metrics["loss"])[None], states))
    same(results[1], results[0])
    with pytest.raises(ValueError, match="4 runs cannot be dealt out evenly over sweep=8"):
        place_runs(states, fixed, given, make_mesh("sweep=8"))
