"""Checkpoints: checked leaf by leaf, restored onto other meshes, and safe from damage and disks."""

import contextlib
import gc
import resource
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

sys.path.insert(0, __file__.rpartition("/")[0])
import mesh_cases

from sftjax.core import flatten
from sftjax.train import (
    Interrupted,
    Saved,
    compile_step,
    digests,
    fit,
    init,
    make_mesh,
    open_checkpoints,
    place_state,
    spread,
)

TX = optax.adam(1e-2)


@pytest.fixture
def dropped_reads():
    """A read of orbax's that fails leaves coroutines behind, which complain when collected: now."""
    yield
    gc.collect()


damaging = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""Of what is collected at the end of a test that damages files; else another test is blamed."""


def state_at(step, seed=0, **params):
    rng = np.random.default_rng(seed + step)
    params = params or {"trunk": {"w": (8, 16)}, "head": {"b": (8,)}}
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        params,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    state, _ = init(params, jax.tree.map(lambda _: True, params), TX, jax.random.key(seed))
    return state._replace(step=jnp.int32(step))


def bits(tree):
    def raw(leaf):
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()

    return {path: raw(leaf) for path, leaf in flatten(tree).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "uint32"])
def test_a_digest_sees_any_flipped_bit(dtype):
    rng = np.random.default_rng(1)
    values = np.asarray(jnp.asarray(rng.integers(0, 2, (5, 7)), dtype))
    whole = digests({"x": jnp.asarray(values)})
    raw = values.tobytes()
    for _ in range(20):
        flipped = bytearray(raw)
        flipped[rng.integers(len(raw))] ^= 1 if dtype == "bool" else 1 << rng.integers(8)
        other = np.frombuffer(bytes(flipped), values.dtype).reshape(values.shape)
        assert digests({"x": jnp.asarray(other)}) != whole
    swapped = values[::-1].copy()
    assert (digests({"x": jnp.asarray(swapped)}) == whole) == (swapped.tobytes() == raw)


def test_host_and_device_agree_on_digests(monkeypatch):
    tree = {"a": jnp.arange(30.0).reshape(5, 6) / 7, "b": jnp.arange(7, dtype=jnp.bfloat16),
            "c": jnp.arange(5) > 2, "d": jnp.float32(3), "k": jax.random.key(5)}  # fmt: skip
    host = digests(tree)
    monkeypatch.setattr("sftjax.train.digest._SMALL", -1)
    assert digests(tree) == host


def mesh_of(*sizes, names=("data", "fsdp")):
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(sizes, names[: len(sizes)], axis_types=kinds)


def on(mesh, *axes):
    def place(leaf):
        fits = leaf.ndim and leaf.shape[0] == 8
        return NamedSharding(mesh, PartitionSpec(*axes) if fits else PartitionSpec())

    return place


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
def test_a_checkpoint_is_restored_onto_another_mesh(tmp_path):
    """From 8 shards to 2 x 4, to 2 devices and to one: the same bits, where they were asked for."""
    state = state_at(3)
    eight = on(mesh_of(8), "data")
    spread = jax.tree.map(lambda leaf: jax.device_put(leaf, eight(leaf)), state)
    assert digests(spread) == digests(state)
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(Saved(spread, None, {}))
    two = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    for place in (on(mesh_of(2, 4), ("data", "fsdp")), on(mesh_of(2, 4), None), on(two, "data")):
        like = jax.tree.map(
            lambda leaf, place=place: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=place(leaf)
            ),
            state,
        )
        with open_checkpoints(tmp_path) as checkpoints:
            found = checkpoints.latest(like)
        assert found is not None
        assert bits(found.state) == bits(state)
        assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, found.state, like))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices")
def test_a_run_goes_on_on_another_mesh_with_the_same_batches_and_losses(tmp_path):
    case = mesh_cases.mlp()
    step, state, losses = compile_step(case.step), case.again(), []
    for number in range(9):
        state, metrics = step(state, case.fixed, case.batches.at(number))
        losses.append(float(metrics["loss"]))
    asked = []
    for words, devices, stop in (("data=8", 8, 4), ("fsdp=2,tensor=2", 4, 99)):
        mesh = make_mesh(words, jax.devices()[:devices])
        place = mesh_cases.rules(mesh)

        def at(number, mesh=mesh):
            asked.append(number)
            return spread(case.batches.at, mesh)(number)

        with (
            open_checkpoints(tmp_path) as checkpoints,
            contextlib.nullcontext() if stop > 9 else pytest.raises(Interrupted, match="update 4"),
        ):
            run = fit(
                compile_step(case.step, mesh, place),
                *place_state(case.again(), case.fixed, mesh, place), at, 9,
                checkpoints=checkpoints, interrupted=lambda number, stop=stop: number == stop,
                log_steps=1,
            )  # fmt: skip
    assert asked == list(range(9))
    assert [row["step"] for row in run.history] == list(range(1, 10))
    np.testing.assert_allclose([row["loss"] for row in run.history], losses, rtol=1e-5)
    ours = flatten(run.state.trainable)
    for path, leaf in flatten(state.trainable).items():
        np.testing.assert_allclose(ours[path], leaf, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's own loops
@damaging
@pytest.mark.usefixtures("dropped_reads")
def test_damage_is_never_taken_for_weights(tmp_path):
    """Any byte of the newest checkpoint: what is read is what was saved, then or before."""
    states = {step: state_at(step) for step in (1, 2)}
    with open_checkpoints(tmp_path) as checkpoints:
        for state in states.values():
            checkpoints.save(Saved(state, state.trainable, {}))
    rng = np.random.default_rng(0)
    files = [file for file in sorted((tmp_path / "2").rglob("*")) if file.stat().st_size]
    files = [file for file in files if file.is_file()]
    fell_back = 0
    for turn in range(24):
        file = files[turn % len(files)]
        good = file.read_bytes()
        bad = bytearray(good)
        how = turn // len(files) % 3
        place = int(rng.integers(len(bad)))
        bad = bad[:place] if how == 1 else bytes(len(bad)) if how == 2 else bad
        if how == 0:
            bad[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(bytes(bad))
        with (
            open_checkpoints(tmp_path) as checkpoints,
            warnings.catch_warnings(record=True) as said,
        ):
            warnings.simplefilter("always")
            found = checkpoints.latest(states[2])
        assert found is not None
        step = int(found.state.step)
        assert bits(found.state) == bits(states[step])
        assert (step == 1) == any("checkpoint 2 cannot be read" in str(w.message) for w in said)
        fell_back += step == 1
        file.write_bytes(good)
    assert fell_back > 8


@damaging
@pytest.mark.usefixtures("dropped_reads")
def test_when_none_is_left_it_says_so(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(Saved(state_at(1), None, {}))
    for file in (tmp_path / "1").rglob("*"):
        if file.is_file():
            file.write_bytes(b"torn")
    with open_checkpoints(tmp_path) as checkpoints, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert checkpoints.latest(state_at(1)) is None
    said = " ".join(str(w.message) for w in said)
    assert "no older one is left" in said
    assert "starts again from its first update" in said


def test_another_base_or_data_is_refused_with_what_changed(tmp_path):
    then, now = {"weights": "aa", "rows": "11"}, {"weights": "aa", "rows": "22"}
    with open_checkpoints(tmp_path, identity=then) as checkpoints:
        checkpoints.save(Saved(state_at(1), None, {"history": []}))
    with (
        open_checkpoints(tmp_path, identity=now) as checkpoints,
        pytest.raises(ValueError, match=r"another run \(rows: '11' there, '22' now\).*on-change"),
    ):
        checkpoints.latest(state_at(1))
    with (
        open_checkpoints(tmp_path, identity=now, accept_changes=True) as checkpoints,
        pytest.warns(UserWarning, match="rows: '11' there"),
    ):
        found = checkpoints.latest(state_at(1))
    assert found is not None
    assert found.facts == {"history": []}


def test_another_form_is_refused_and_not_taken_for_damage(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(Saved(state_at(1), None, {}))
        with pytest.raises(ValueError, match=r"head/b: float32\[8\] there, float32\[4\] now"):
            checkpoints.latest(state_at(1, trunk={"w": (8, 16)}, head={"b": (4,)}))


def test_keeps_the_last_ones_and_the_newest_up_to_a_step(tmp_path):
    with open_checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (2, 4, 6, 8):
            checkpoints.save(Saved(state_at(step), None, {}))
        found = checkpoints.latest(state_at(0), at_most=7)
        assert found is not None
        assert int(found.state.step) == 6
        assert checkpoints.latest(state_at(0), at_most=3) is None
    assert sorted(item.name for item in tmp_path.iterdir() if item.is_dir()) == ["4", "6", "8"]


def test_a_full_disk_leaves_the_run_alive_and_the_last_save_whole(tmp_path):
    big = {"w": (300, 300)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(Saved(state_at(1, **big), None, {}))
        checkpoints.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
            checkpoints.save(Saved(state_at(2, **big), None, {}))
            with pytest.warns(UserWarning, match="update 2 could not be saved.*too large.*goes on"):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert checkpoints.failed == [2]
        found = checkpoints.latest(state_at(0, **big))
        assert found is not None
        assert bits(found.state) == bits(state_at(1, **big))
        checkpoints.save(Saved(state_at(3, **big), None, {}))
    assert {item.name for item in tmp_path.iterdir() if item.is_dir()} == {"1", "3"}
