"""Leaves go to the devices part by part; what was cut over files and devices is put together."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from sftjax.core import flatten, unflatten
from sftjax.hub import by_rules, load, save
from sftjax.models import Head, build

LLAMA = {
    "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 32,
}  # fmt: skip
BROAD = {"hidden_size": 256, "num_hidden_layers": 5, "intermediate_size": 512}
"""Leaves of half a megabyte, of nine megabytes together."""
RULES = [
    ("**/q_proj/kernel", PartitionSpec(None, "model")),
    ("**/down_proj/kernel", PartitionSpec("model")),
    ("**/embedding", PartitionSpec(("data", "model"))),
    ("score", PartitionSpec(None, "model")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama in several files, with a chat template and settings of generation beside it."""
    origin = tmp_path_factory.mktemp("llama")
    model = build(LLAMA, Head("causal-lm"))
    save(origin, model, model.init(jax.random.key(0)), max_shard_size=4000)
    assert len(list(origin.glob("model-*.safetensors"))) > 2
    (origin / "generation_config.json").write_text('{"temperature": 0.6}')
    (origin / "chat_template.jinja").write_text("{{ messages }}")
    return origin


def test_each_device_gets_its_part(folder):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    place = by_rules(mesh, RULES)
    plain = load(folder)
    cut = load(folder, sharding=place, param_dtype=jnp.bfloat16)
    for path, leaf in flatten(cut.params).items():
        assert leaf.sharding == place(path, leaf.shape)
        expected = flatten(plain.params)[path].astype(jnp.bfloat16)
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected))
    q = flatten(cut.params)["model/layers/0/self_attn/q_proj/kernel"]
    assert {shard.data.shape for shard in q.addressable_shards} == {(16, 4)}
    new = load(folder, head="sequence", labels=("a", "b", "c"), sharding=place)
    assert new.report.new == ("score/kernel",)  # 3 labels over 4 devices: whole on each
    assert new.params["score"]["kernel"].sharding.spec == PartitionSpec()


@pytest.mark.parametrize("axes", [None, "fsdp"])
def test_no_leaf_is_made_on_the_host_where_nothing_is_cast(tmp_path, axes):
    model = build(LLAMA | {"hidden_size": 512, "intermediate_size": 2048}, Head("causal-lm"))
    save(tmp_path, model, jax.jit(model.init)(jax.random.key(0)))
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    place = by_rules(mesh, [("**/kernel", PartitionSpec(None, axes))]) if axes else None
    load(tmp_path, sharding=place)  # what a first load alone makes is no leaf
    tracemalloc.start()
    try:
        loaded = jax.block_until_ready(load(tmp_path, sharding=place))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    leaves = flatten(loaded.params)
    down = "model/layers/0/mlp/down_proj/kernel"  # (out, in) in the file, (in, out) here
    assert peak < 0.5 * leaves[down].nbytes
    stored = loaded.report.tensor(loaded.report.names[down])
    np.testing.assert_array_equal(np.asarray(leaves[down]), stored.T)


def test_few_bits_are_not_laid_out(folder):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match="leave one of them out"):
        load(folder, quantize="nf4", sharding=by_rules(mesh, []))


def test_a_sharded_model_is_saved_with_one_leaf_at_a_time_on_the_host(tmp_path):
    model = build(LLAMA | BROAD, Head("causal-lm"))
    draw = np.random.default_rng(0)
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))
    leaves = {}
    for path, shape in flatten(model.shapes()).items():
        cut = PartitionSpec("fsdp") if len(shape.shape) > 1 else PartitionSpec()
        values = draw.normal(size=shape.shape).astype(np.float32)
        leaves[path] = jax.device_put(values, NamedSharding(mesh, cut))
    sizes = [leaf.nbytes for leaf in leaves.values()]
    assert sum(sizes) > 12 * max(sizes)
    expected = {path: np.array(leaf) for path, leaf in list(leaves.items())[::4]}

    def peak_of(**report):
        tracemalloc.start()
        try:
            save(tmp_path / "saved", model, unflatten(leaves), **report)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # A leaf, its transpose, and what Python itself takes.
    assert peak_of() < 2 * max(sizes) + 1_500_000
    again = load(tmp_path / "saved")
    assert peak_of(report=again.report) < 2 * max(sizes) + 1_500_000
    for path, values in expected.items():
        np.testing.assert_array_equal(flatten(again.params)[path], values)


def test_everything_beside_the_weights_goes_with_them(folder, tmp_path):
    model, params, report = load(folder)
    again = save(tmp_path / "again", model, params, report=report)
    assert json.loads((again / "generation_config.json").read_text()) == {"temperature": 0.6}
    assert (again / "chat_template.jinja").read_text() == "{{ messages }}"
    config = json.loads((again / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    for path, leaf in flatten(load(again).params).items():
        np.testing.assert_array_equal(leaf, flatten(params)[path])
