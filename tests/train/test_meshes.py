"""Meshes from words, layouts from paths and shapes; what cannot be is told before compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from sftjax.core import Aux, Loss, Share, cut_largest, fitted
from sftjax.models import TENSOR_RULES
from sftjax.train import (
    automatic,
    compile_step,
    copies,
    init,
    make_mesh,
    make_step,
    pmap_step,
    share_of,
    spread,
)
from sftjax.train.meshes import parse_mesh, row_sharding


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("", {"data": 8}),
        ("data=2,fsdp=4", {"data": 2, "fsdp": 4}),
        (" fsdp = -1 , tensor = 2 ", {"fsdp": 4, "tensor": 2}),
        ("sweep=4,data=-1", {"sweep": 4, "data": 2}),
    ],
)
def test_a_description_is_its_mesh(text, sizes):
    assert parse_mesh(text, 8) == sizes
    assert dict(make_mesh(text).shape) == sizes


def test_the_axes_that_talk_most_lie_between_neighbours():
    mesh = make_mesh("tensor=2,data=4")
    assert mesh.axis_names == ("data", "tensor")
    assert [[d.id for d in row] for row in mesh.devices] == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data", r"cannot read 'data' in the mesh 'data'; write axis=size"),
        ("data=two", r"cannot read 'data=two'"),
        ("model=8", r"'model' in the mesh 'model=8' is no axis; there are sweep, data, fsdp"),
        ("data=2,data=4", r"data comes twice"),
        ("data=0", r"data=0 .* a size is 1 or more, or -1"),
        ("data=-1,fsdp=-1", r"data and fsdp .* cannot both take what is left"),
        ("data=3,fsdp=-1", r"cuts 8 devices into groups of 3"),
        ("data=4", r"takes 4 devices and there are 8; .* data=-1"),
    ],
)
def test_a_description_that_is_no_mesh_is_quoted(text, words):
    with pytest.raises(ValueError, match=words):
        make_mesh(text)


def test_rules_ask_and_the_mesh_gives_what_it_has():
    kernel, bias = "base/model/layers/3/mlp/up_proj/kernel", "model/layers/3/mlp/up_proj/bias"
    place = automatic(AbstractMesh((2, 2), ("fsdp", "tensor")), TENSOR_RULES, smallest=64)
    assert place(kernel, (64, 96)).spec == PartitionSpec("fsdp", "tensor")
    assert place(kernel, (63, 96)).spec == PartitionSpec(None, "tensor")
    assert place(kernel, (64, 95)).spec == PartitionSpec("fsdp")
    assert place(bias, (96,)).spec == PartitionSpec("tensor")
    assert place("model/norm/scale", (32,)).spec == PartitionSpec()
    assert place("adapter/x/lora_a", (64, 4)).spec == PartitionSpec("fsdp")
    plain = automatic(AbstractMesh((4,), ("data",)), TENSOR_RULES, smallest=1)
    assert plain(kernel, (64, 96)).spec == PartitionSpec()


def test_kernels_of_convolutions_are_cut_by_output_channels_alone():
    mesh = AbstractMesh((2, 2), ("fsdp", "tensor"))
    outputs = PartitionSpec(None, None, None, "tensor")
    assert cut_largest(outputs, (3, 3, 64, 64), mesh, "fsdp", 1) == outputs
    by_size = cut_largest(PartitionSpec(), (3, 3, 640, 64), mesh, "fsdp", 1)
    assert by_size == PartitionSpec(None, None, None, "fsdp")
    assert cut_largest(PartitionSpec(), (3, 3, 640, 63), mesh, "fsdp", 1) == PartitionSpec()


def test_specs_are_fitted_axis_by_axis():
    mesh = AbstractMesh((2, 4), ("data", "fsdp"))
    assert fitted(PartitionSpec(("data", "fsdp")), (8,), mesh) == PartitionSpec(("data", "fsdp"))
    assert fitted(PartitionSpec(("data", "fsdp")), (6,), mesh) == PartitionSpec()
    assert fitted(PartitionSpec("data", "fsdp"), (6,), mesh) == PartitionSpec()


def test_rows_tokens_and_pictures_of_a_batch():
    mesh = AbstractMesh((2, 2, 2), ("data", "fsdp", "sequence"))
    rows = ("data", "fsdp")
    assert row_sharding(mesh, (8,)).spec == PartitionSpec(rows)
    assert row_sharding(mesh, (8, 16)).spec == PartitionSpec(rows, "sequence")
    assert row_sharding(mesh, (8, 15)).spec == PartitionSpec(rows)
    assert row_sharding(mesh, (8, 16, 16, 3)).spec == PartitionSpec(rows)
    with pytest.raises(ValueError, match=r"6 rows .* over 4 devices \(data=2, fsdp=2\)"):
        row_sharding(mesh, (6, 16))


def test_a_source_that_takes_a_share_is_asked_for_it_only_by_several_processes():
    mesh, asked = make_mesh("data=4,tensor=2"), []

    def at(step, share=None):
        asked.append(share)
        return {"x": np.arange(8)}

    batch = spread(at, mesh)(0)
    assert asked == [None]
    assert share_of(mesh) == Share(0, 4, 4)
    assert batch["x"].sharding.spec == PartitionSpec("data")
    with pytest.raises(ValueError, match="6 rows of a batch cannot be cut into 4 equal parts"):
        Share(0, 1, 4).of(6)


def test_a_mesh_of_explicit_axes_is_as_good_as_any():
    # What `jax.make_mesh` gives from jax 0.11 on where nothing is said: there a lookup of words
    # would have to say where its result lies.
    def objective(params, model_state, batch, key):
        return Loss(jnp.square(params["words"][batch["ids"]]).sum(), 8.0), Aux({})

    tx, ids = optax.sgd(0.1), np.arange(8, dtype=np.int32) % 3
    words = {"words": jax.random.normal(jax.random.key(0), (16, 1024))}
    explicit = jax.make_mesh((2, 4), ("data", "fsdp"), (AxisType.Explicit,) * 2)
    after = []
    for mesh in (None, make_mesh("data=2,fsdp=4"), explicit):
        state, fixed = init(words, {"words": True}, tx, jax.random.key(1))
        state, metrics = compile_step(make_step(objective, tx), mesh)(state, fixed, {"ids": ids})
        after.append((np.asarray(state.trainable["words"]), float(metrics["loss"])))
    for weights, loss in after[1:]:
        np.testing.assert_allclose(weights, after[0][0], rtol=1e-6)
        assert loss == pytest.approx(after[0][1], rel=1e-6)


def test_pmap_is_told_of_a_leaf_without_copies():
    step = pmap_step(lambda state, fixed, batch: (state, {}))
    with pytest.raises(ValueError, match=r"batch/x has shape \(4, 2\).* the 8 devices"):
        step(copies({"w": jax.numpy.ones(2)}), copies({}), {"x": np.zeros((4, 2))})
