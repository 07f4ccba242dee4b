"""A base in few bits: what it costs, what it loses, and that adapters train beside it."""

import math
import pathlib
import subprocess
import sys
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

from sftjax.adapters import (
    attach,
    dequantize,
    dequantize_tree,
    describe_quantized,
    lora,
    merge_adapter,
    on_quantized,
    plan_adapter,
    quantize,
    quantize_base,
    side_branch,
    with_adapter,
)
from sftjax.adapters.quantize import LEVELS, quantized_dot, quantized_rows
from sftjax.core import combine, count, flatten, nbytes, partition
from sftjax.hub import load, save
from sftjax.models import Head, bert, build
from sftjax.objectives import classification
from sftjax.select import describe, select
from sftjax.train import compile_step, init, make_step

WAYS = [("nf4", False), ("nf4", True), ("int8", False), ("int8", True)]


@pytest.fixture(scope="module")
def model():
    sizes = dict.fromkeys(bert.SIZES, 8) | {
        "vocab_size": 100, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256,
        "num_hidden_layers": 2, "initializer_range": 0.1,
    }  # fmt: skip
    return build({"model_type": "bert", **sizes}, Head("sequence", ("bad", "good")))


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    ids = jax.random.randint(jax.random.key(1), (4, 8), 1, 100)
    return {"input_ids": ids, "labels": jnp.array([0, 1, 0, 1])}


def drawn(*shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(7), shape).astype(dtype)


class TestArrays:
    def test_the_levels_are_quantiles_of_a_normal_distribution(self):
        # Appendix E: 8 levels from 1 - delta down to 1/2 on the one side, 9 on the other, zero
        # shared, all divided by the largest.
        offset = 0.9677083
        upper = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
        lower = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
        wanted = np.sort(np.concatenate([upper, [0.0], lower])) / upper.max()
        np.testing.assert_allclose(LEVELS, wanted, atol=1e-6)

    @pytest.mark.parametrize(("how", "double"), WAYS)
    @pytest.mark.parametrize("shape", [(6, 128), (3, 5, 64), (4, 100), (70,)])
    def test_each_entry_is_the_nearest_level_of_its_block(self, how, double, shape):
        w = np.asarray(drawn(*shape))
        found = quantize(w, how, double=double)
        back = np.asarray(dequantize(found))
        assert back.shape == shape
        assert back.dtype == np.float32
        rows = np.pad(w, [*[(0, 0)] * (len(shape) - 1), (0, -shape[-1] % 64)])
        most = np.abs(rows.reshape(*rows.shape[:-1], -1, 64)).max(-1)
        bound = np.repeat(most, 64, -1)[..., : shape[-1]]
        gap = {"nf4": np.diff(LEVELS).max(), "int8": 1 / 127}[how] / 2
        # A quantized scale is off by half a step of the spread of the scales.
        slack = np.ptp(most) / 127 if double else 0.0
        assert (np.abs(back - w) <= gap * bound + 1.1 * slack + 1e-6).all()
        assert np.abs(back - w).max() > 0

    @pytest.mark.parametrize("how", ["nf4", "int8"])
    def test_what_is_on_the_levels_stays(self, how):
        once = dequantize(quantize(drawn(8, 128), how))
        np.testing.assert_allclose(dequantize(quantize(once, how)), once, rtol=1e-6)

    @pytest.mark.parametrize(("how", "double"), WAYS)
    def test_blocks_of_zeros_and_of_one_value(self, how, double):
        w = np.zeros((3, 128), np.float32)
        w[1] = 0.5
        back = np.asarray(dequantize(quantize(w, how, double=double)))
        assert not back[[0, 2]].any() or double
        np.testing.assert_allclose(back, w, atol=0.01 if double else 1e-6)

    def test_a_bfloat16_array_comes_back_as_one(self):
        w = drawn(4, 64, dtype=jnp.bfloat16)
        found = quantize(w)
        assert found.dtype == dequantize(found).dtype == jnp.bfloat16
        assert dequantize(found, jnp.float32).dtype == jnp.float32

    @pytest.mark.parametrize(
        ("call", "words"),
        [
            (lambda: quantize(np.ones((2, 64), np.float32), "fp4"), "how='fp4'; known: nf4, int8"),  # type: ignore[arg-type]
            (lambda: quantize(np.ones((2, 64), np.int32)), "dtype int32 cannot be quantized"),
            (lambda: quantize(np.full((2, 64), np.nan, np.float32)), "NaN or infinity"),
            (lambda: quantize(np.ones((2, 64), np.float32), block=7), "block=7; it is an even"),
        ],
    )
    def test_refused(self, call, words):
        with pytest.raises(ValueError, match=words):
            call()


class TestProducts:
    @pytest.mark.parametrize(("how", "double"), WAYS)
    def test_product_and_gradient_are_those_of_the_dequantized_weights(self, how, double):
        q, x = quantize(drawn(32, 128), how, double=double), drawn(5, 32)
        w = dequantize(q)
        np.testing.assert_allclose(quantized_dot(q, x), x @ w, rtol=1e-6, atol=1e-6)
        ours, plain = (
            jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(x)
            for f in (lambda x: quantized_dot(q, x), lambda x: x @ w)
        )
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(("how", "double"), WAYS)
    def test_rows_are_rows_of_the_dequantized_table(self, how, double):
        q, ids = quantize(drawn(20, 96), how, double=double), jnp.array([[3, 0], [19, 3]])
        np.testing.assert_array_equal(quantized_rows(q, ids), dequantize(q)[ids])
        assert np.isnan(quantized_rows(q, jnp.array([20]))).all()

    def test_no_dequantized_weights_are_kept_for_the_gradient(self):
        layers = [quantize(drawn(256, 256)) for _ in range(8)]

        def temporary(multiply):
            def loss(x, layers):
                for q in layers:
                    x = jnp.tanh(multiply(q, x))
                return x.sum()

            step = jax.jit(jax.grad(loss)).lower(jnp.ones((4, 256)), layers).compile()
            memory: Any = step.memory_analysis()
            return memory.temp_size_in_bytes

        whole = 4 * 256 * 256
        assert temporary(lambda q, x: x @ dequantize(q)) > 8 * whole
        assert temporary(quantized_dot) < 2 * whole


class TestBase:
    def test_nf4_takes_at_most_three_tenths_of_bfloat16(self, model, params):
        large = {"q": {"kernel": jax.random.normal(jax.random.key(0), (768, 3072))}}
        for double, bits in ((False, 4.5), (True, 4.13)):
            found = quantize_base(large, double=double)
            assert nbytes(found) <= 0.30 * 2 * count(large)
            assert 8 * nbytes(found) / count(large) == pytest.approx(bits, abs=0.01)
            assert count(found) == count(large)
        table = describe_quantized(quantize_base(params, double=True))
        assert "nf4 double" in table
        assert "4.13 bits each" in table

    def test_biases_norms_and_the_narrow_head_stay(self, params):
        kept = flatten(quantize_base(params, exclude=["bert/pooler"]))
        same = {
            path for path, leaf in flatten(params).items() if path in kept and kept[path] is leaf
        }
        assert {"classifier/kernel", "bert/pooler/dense/kernel"} < same
        assert any(path.endswith("LayerNorm/scale") for path in same)
        assert "bert/encoder/layer/0/attention/self/query/kernel/codes" in kept

    @pytest.mark.parametrize(("how", "double"), WAYS)
    def test_the_model_runs_as_on_the_dequantized_base(self, model, params, batch, how, double):
        base = quantize_base(params, how, double=double)
        ours = jax.jit(on_quantized(model.apply))(base, batch)
        plain = jax.jit(model.apply)(dequantize_tree(base), batch)
        np.testing.assert_allclose(ours, plain, atol=2e-6)
        assert np.abs(np.asarray(ours) - np.asarray(model.apply(params, batch))).max() > 1e-4

    def test_a_tied_decoder_reads_the_same_table(self, params, batch):
        tied = build({"model_type": "bert", **_sizes()}, Head("masked-lm"))
        whole = tied.init(jax.random.key(0))
        base = quantize_base(whole)
        ours = jax.jit(on_quantized(tied.apply))(base, batch)
        np.testing.assert_allclose(
            ours, jax.jit(tied.apply)(dequantize_tree(base), batch), atol=1e-5
        )

    def test_refused(self, params):
        with pytest.raises(ValueError, match="pattern 'bert/encode' names no leaf; nearest: bert"):
            quantize_base(params, patterns=["bert/encode"])
        with pytest.raises(ValueError, match="nothing is quantized"):
            quantize_base({"d": {"kernel": jnp.ones((4, 4))}})
        spoilt = {"d": {"kernel": jnp.full((4, 64), jnp.inf)}}
        with pytest.raises(ValueError, match="d/kernel: the array holds NaN or infinity"):
            quantize_base(spoilt)


def _sizes():
    return dict.fromkeys(bert.SIZES, 8) | {
        "vocab_size": 100, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 256,
    }  # fmt: skip


class TestAdapters:
    def joined(self, params, kind=None):
        base = quantize_base(params)
        plan = plan_adapter(base, kind or lora(r=4), exclude_modules=["classifier"])
        joined = with_adapter(base, plan, jax.random.key(3))
        joined["adapter"] = jax.tree.map(lambda leaf: leaf + 0.02, joined["adapter"])
        return plan, joined

    def test_gradients_are_those_beside_the_dequantized_base(self, model, params, batch):
        plan, joined = self.joined(params)
        task = classification(side_branch(model.apply, plan))

        def gradient(base):
            def loss(adapter):
                return task({"adapter": adapter, "base": base}, {}, batch, None)[0].sum

            return jax.jit(jax.grad(loss))(joined["adapter"])

        ours, plain = gradient(joined["base"]), gradient(dequantize_tree(joined["base"]))
        for path, leaf in flatten(plain).items():
            np.testing.assert_allclose(flatten(ours)[path], leaf, rtol=1e-3, atol=1e-6)

    def test_a_step_reads_codes_and_trains_the_adapter_alone(self, model, params, batch):
        plan, joined = self.joined(params)
        tx = optax.adam(1e-2)
        trainable = select(joined, [("adapter", 1.0)]).trainable
        state, fixed = init(joined, trainable, tx, jax.random.key(0), frozen_dtype=jnp.bfloat16)
        scales = [leaf for path, leaf in flatten(fixed.frozen).items() if path.endswith("scales")]
        assert {leaf.dtype for leaf in scales} == {jnp.dtype("float32")}
        step = compile_step(make_step(classification(side_branch(model.apply, plan)), tx))
        program = step.lower(state, fixed, batch).compile()  # type: ignore[attr-defined]
        arguments = program.memory_analysis().argument_size_in_bytes
        held = nbytes(state) + nbytes(fixed) + nbytes(batch)
        assert arguments < 1.1 * held
        assert nbytes(fixed) < 0.2 * nbytes(params)
        losses = []
        for _ in range(15):
            state, metrics = step(state, fixed, batch)
            losses.append(float(metrics["loss"]))
        assert losses[-1] < 0.5 * losses[0]
        whole = combine(state.trainable, fixed.frozen)
        assert jax.tree.structure(whole) == jax.tree.structure(joined)

    def test_merging_dequantizes(self, model, params, batch):
        plan, joined = self.joined(params)
        merged = merge_adapter(joined["base"], joined["adapter"], plan)
        ours = jax.jit(side_branch(model.apply, plan))(joined, batch)
        np.testing.assert_allclose(jax.jit(model.apply)(merged, batch), ours, atol=1e-5)

    def test_codes_cannot_be_trained(self, params):
        base = quantize_base(params)
        with pytest.raises(ValueError, match=r"codes has dtype uint8 and cannot be trained"):
            init(base, jax.tree.map(lambda _: True, base), optax.sgd(0.1), jax.random.key(0))

    def test_pissa_is_taken_off_before_quantizing(self, model, params, batch):
        start = lora(r=4, init_lora_weights="pissa")
        with pytest.raises(ValueError, match="quantized already; attach it to the whole weights"):
            self.joined(params, kind=start)
        plan = plan_adapter(params, start, target_modules=["query", "output.dense"])
        adapter, rest = attach(params, plan, jax.random.key(0))
        base = quantize_base(rest)
        found = jax.jit(side_branch(model.apply, plan))({"adapter": adapter, "base": base}, batch)
        assert np.isfinite(found).all()

    def test_holes_of_quantized_leaves_are_nothing(self, params):
        base = quantize_base(params)
        moving, frozen = partition(base, jax.tree.map(lambda _: False, base))
        assert count(moving) == 0
        assert count(frozen) == count(params)

    @pytest.mark.parametrize("platform", ["cuda", "tpu"])
    def test_lowers_for_other_platforms(self, model, params, batch, platform):
        plan, joined = self.joined(params)
        run = jax.jit(jax.grad(
            lambda adapter, base: side_branch(model.apply, plan)(
                {"adapter": adapter, "base": base}, batch
            ).sum()
        ))  # fmt: skip
        exported = jax.export.export(run, platforms=[platform])(joined["adapter"], joined["base"])
        assert exported.platforms == (platform,)


def test_described_by_the_sizes_that_it_stands_for(params):
    plan = plan_adapter(params, lora(r=2), target_modules=["query"])
    told = {}
    for name, base in (("plain", params), ("nf4", quantize_base(params))):
        joined = with_adapter(base, plan, jax.random.key(0))
        told[name] = describe(joined, select(joined, [("adapter", 1.0)]), tx=optax.adam(1e-3))
    for plain, few in zip(
        (*told["plain"].rows, told["plain"].total), (*told["nf4"].rows, told["nf4"].total),
        strict=True,
    ):  # fmt: skip
        for field in ("rule", "leaves", "parameters", "optimizer_bytes", "share"):
            assert getattr(few, field) == getattr(plain, field)
    assert told["nf4"].total.bytes < 0.5 * told["plain"].total.bytes
    assert told["nf4"].total.parameters == count(params) + count(joined["adapter"])


class TestLoading:
    def test_gives_what_quantizing_the_loaded_base_gives(self, model, params, tmp_path):
        save(tmp_path / "m", model, params)
        found = load(tmp_path / "m", quantize="nf4-double").params
        wanted = quantize_base(params, double=True)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        for path, leaf in flatten(wanted).items():
            np.testing.assert_array_equal(flatten(found)[path], leaf)
        with pytest.raises(ValueError, match="quantize is 'fp4'; it is one of nf4, nf4-double"):
            load(tmp_path / "m", quantize="fp4")

    @pytest.mark.skipif(
        not pathlib.Path("/proc/self/status").exists(), reason="peak memory is read from /proc"
    )
    def test_holds_no_more_than_the_quantized_base_and_the_largest_leaf(self, tmp_path):
        wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
        config = {"model_type": "bert", **_sizes(), **wide, "num_hidden_layers": 6}
        large = build(config, Head("hidden"))
        shapes = large.shapes()
        zeros = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), shapes)
        save(tmp_path / "large", large, zeros)
        small = build({"model_type": "bert", **_sizes()}, Head("hidden"))
        save(tmp_path / "small", small, small.init(jax.random.key(0)))
        script = textwrap.dedent("""
            import pathlib, sys
            import jax
            from sftjax.core import nbytes
            from sftjax.hub import load

            def resident(what):
                lines = pathlib.Path("/proc/self/status").read_text().splitlines()
                return next(int(l.split()[1]) * 1024 for l in lines if l.startswith(what))

            jax.block_until_ready(load(sys.argv[1], head="hidden", quantize="nf4").params)
            before = resident("VmRSS")
            pathlib.Path("/proc/self/clear_refs").write_text("5")
            loaded = load(sys.argv[2], head="hidden", quantize="nf4")
            print(resident("VmHWM") - before, nbytes(loaded.params))
        """)
        out = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "small"), str(tmp_path / "large")],
            capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
        peak, size = map(int, out.stdout.split())
        largest = max(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        whole = nbytes(shapes)
        # The leaf as it lies in the mapped file, turned, and worked on in chunks; and the programs
        # that are compiled for its shapes meanwhile, seen to take 0.6 MB on a busy machine.
        programs = 4 * 2**20
        assert peak < size + 3 * largest + programs
        assert peak < 0.5 * whole
