"""What an adapter does beside the weights and what it does in them are the same (O7, O8)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.adapters import (
    Site,
    add_adapters,
    attach,
    dora,
    lora,
    merge_adapter,
    plan_adapter,
    scale_adapter,
    side_branch,
    tree_merge,
    unmerge_adapter,
)
from sftjax.core import flatten

ALL = [
    "lora", "rslora", "gaussian", "embedding", "pissa", "olora", "dora", "ia3", "ia3-input",
]  # fmt: skip
AT_BASE = [name for name in ALL if name not in ("pissa", "olora")]
LINEAR = ["lora", "rslora", "embedding", "pissa", "ia3", "ia3-input"]


def furthest(a, b):
    return max(
        float(jnp.abs(x - y).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def logits(tiny, apply, params, key=None):
    return jax.jit(apply)(params, tiny.batch, key)


class TestFreshAdapters:
    @pytest.mark.parametrize("name", AT_BASE)
    def test_leave_the_logits_equal_to_the_bit(self, tiny, beside, name):
        plan, fresh, _ = beside(name)
        base = tiny.model.apply(tiny.params, tiny.batch)
        assert (side_branch(tiny.model.apply, plan)(fresh, tiny.batch) == base).all()
        assert (tree_merge(tiny.model.apply, plan)(fresh, tiny.batch) == base).all()

    @pytest.mark.parametrize("name", ALL)
    def test_leave_the_compiled_logits_equal_but_for_how_products_are_fused(
        self, tiny, beside, name
    ):
        # Beside a branch XLA fuses the bias of a Dense layer otherwise, and so rounds otherwise.
        plan, fresh, _ = beside(name)
        base = logits(tiny, tiny.model.apply, tiny.params)
        assert furthest(logits(tiny, side_branch(tiny.model.apply, plan), fresh), base) < 1e-7
        assert furthest(logits(tiny, tree_merge(tiny.model.apply, plan), fresh), base) < 1e-7

    def test_each_site_draws_by_its_path_alone(self, tiny):
        key = jax.random.key(0)
        few = plan_adapter(tiny.params, lora(), target_modules=["query"])
        many = plan_adapter(tiny.params, lora(), target_modules=["query", "key"])
        found, within = (flatten(attach(tiny.params, plan, key)[0]) for plan in (few, many))
        assert len(within) == 2 * len(found)
        assert all((within[path] == leaf).all() for path, leaf in found.items())
        drawn = [leaf for path, leaf in found.items() if path.endswith("lora_a")]
        assert not (drawn[0] == drawn[1]).all()


class TestStarts:
    """O8: where the kinds that do not start at zero take their factors from."""

    def test_pissa_leaves_the_smaller_singular_values(self, tiny, beside):
        plan, fresh, _ = beside("pissa")
        merged = flatten(merge_adapter(fresh["base"], fresh["adapter"], plan))
        for site, _ in plan.sites:
            path = f"{site.path}/kernel"
            whole = np.linalg.svd(flatten(tiny.params)[path], compute_uv=False)
            rest = np.linalg.svd(flatten(fresh["base"])[path], compute_uv=False)
            assert rest[0] == pytest.approx(whole[4], rel=1e-4)
            np.testing.assert_allclose(merged[path], flatten(tiny.params)[path], atol=1e-7)

    def test_olora_takes_orthonormal_columns(self, tiny, beside):
        plan, fresh, _ = beside("olora")
        for site, _ in plan.sites:
            q = flatten(fresh["adapter"])[f"{site.path}/lora_b"]
            np.testing.assert_allclose(q @ q.T, np.eye(4), atol=1e-5)

    def test_the_deviations_are_pefts(self):
        # PEFT: A by kaiming_uniform(a=sqrt(5)), which is uniform within 1/sqrt(in), or N(0, 1/r).
        site = Site("q", "kernel", (400, 300))
        uniform, normal = (
            np.asarray(lora(8, init_lora_weights=start).init(site, jax.random.key(0), {})["lora_a"])
            for start in ("default", "gaussian")
        )
        assert np.abs(uniform).max() == pytest.approx(1 / 20, rel=1e-2)
        assert uniform.std() == pytest.approx(1 / 20 / np.sqrt(3), rel=5e-2)
        assert normal.std() == pytest.approx(1 / 8, rel=5e-2)


class TestBothWays:
    @pytest.mark.parametrize("name", ALL)
    def test_beside_and_merged_agree(self, tiny, beside, name):
        plan, _, moved = beside(name)
        by_side = logits(tiny, side_branch(tiny.model.apply, plan), moved)
        merged = logits(tiny, tree_merge(tiny.model.apply, plan), moved)
        moved_by = furthest(by_side, logits(tiny, tiny.model.apply, tiny.params))
        assert furthest(by_side, merged) < 1e-3 * moved_by + 1e-8
        assert moved_by > 1e-7

    @pytest.mark.parametrize("name", ["lora", "dora", "ia3-input"])
    def test_their_gradients_agree(self, tiny, beside, name):
        plan, _, moved = beside(name)

        def gradient(apply):
            def loss(adapter):
                return jnp.sum(apply({**moved, "adapter": adapter}, tiny.batch) ** 2)

            return jax.jit(jax.grad(loss))(moved["adapter"])

        beside_it = gradient(side_branch(tiny.model.apply, plan))
        for path, leaf in flatten(gradient(tree_merge(tiny.model.apply, plan))).items():
            np.testing.assert_allclose(flatten(beside_it)[path], leaf, rtol=1e-4, atol=1e-9)

    @pytest.mark.parametrize("name", ["lora", "pissa", "dora"])
    def test_at_scale_zero_the_base_is_left(self, tiny, beside, name):
        plan, _, moved = beside(name)
        at_zero = side_branch(tiny.model.apply, plan, scale=0.0)(moved, tiny.batch)
        assert furthest(at_zero, tiny.model.apply(moved["base"], tiny.batch)) < 1e-8

    def test_dropout_is_of_the_branch_alone_and_drawn_by_the_key(self, tiny):
        plan = plan_adapter(tiny.params, lora(lora_dropout=0.5), target_modules=["query"])
        adapter, base = attach(tiny.params, plan, jax.random.key(0))
        apply = side_branch(lambda params, batch, key=None: tiny.model.apply(params, batch), plan)

        def run(adapter, key):
            return apply({"adapter": adapter, "base": base}, tiny.batch, key)

        keys = jax.random.split(jax.random.key(1))
        assert (run(adapter, keys[0]) == tiny.model.apply(base, tiny.batch)).all()
        moved = jax.tree.map(lambda leaf: leaf + 0.1, adapter)
        assert (run(moved, keys[0]) == run(moved, keys[0])).all()
        assert not (run(moved, keys[0]) == run(moved, keys[1])).all()
        assert not (run(moved, keys[0]) == run(moved, None)).all()


class TestMerge:
    @pytest.mark.parametrize("name", ALL)
    def test_then_unmerge_restores_the_base(self, beside, name):
        plan, _, moved = beside(name)
        merged = merge_adapter(moved["base"], moved["adapter"], plan)
        assert furthest(merged, moved["base"]) > 1e-4
        assert furthest(unmerge_adapter(merged, moved["adapter"], plan), moved["base"]) < 1e-6

    @pytest.mark.parametrize("name", ["lora", "rslora", "embedding", "pissa"])
    def test_changes_by_a_matrix_of_at_most_the_rank(self, beside, name):
        plan, _, moved = beside(name)
        merged = flatten(merge_adapter(moved["base"], moved["adapter"], plan))
        for site, _ in plan.sites:
            path = f"{site.path}/{site.leaf}"
            change = np.asarray(merged[path] - flatten(moved["base"])[path], np.float64)
            values = np.linalg.svd(change, compute_uv=False)
            assert (values > 1e-4 * values[0]).sum() <= 4, path

    def test_leaves_all_other_params_as_they_are(self, beside):
        plan, _, moved = beside("rslora")
        merged = flatten(merge_adapter(moved["base"], moved["adapter"], plan))
        touched = {f"{site.path}/kernel" for site, _ in plan.sites}
        assert all(
            merged[path] is leaf
            for path, leaf in flatten(moved["base"]).items()
            if path not in touched
        )

    def test_keeps_the_dtype_of_a_bfloat16_base(self, beside):
        plan, _, moved = beside("lora")
        base = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), moved["base"])
        merged = merge_adapter(base, moved["adapter"], plan)
        assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {jnp.dtype("bfloat16")}

    def test_dora_gives_each_output_its_learned_length(self, tiny, beside):
        plan, _, moved = beside("dora")
        merged, base = (flatten(tree) for tree in (
            merge_adapter(moved["base"], moved["adapter"], plan), moved["base"],
        ))  # fmt: skip
        for site, _ in plan.sites:
            path = f"{site.path}/kernel"
            wanted = (
                jnp.linalg.norm(base[path], axis=0)
                + flatten(moved["adapter"])[f"{site.path}/magnitude"]
            )
            found = jnp.linalg.norm(merged[path], axis=0)
            np.testing.assert_allclose(found, wanted, rtol=1e-5)

    def test_a_dora_change_longer_than_the_weights_is_not_taken_out_by_guess(self, tiny):
        plan = plan_adapter(tiny.params, dora(r=2), target_modules=["query"])
        adapter, base = attach(tiny.params, plan, jax.random.key(0))
        adapter = jax.tree.map(lambda leaf: leaf + 1.0, adapter)
        merged = merge_adapter(base, adapter, plan)
        with pytest.raises(ValueError, match="several bases would merge into these weights"):
            unmerge_adapter(merged, adapter, plan)


class TestScaleAndAdd:
    @pytest.mark.parametrize("name", LINEAR)
    def test_scaling_leaves_is_scaling_the_effect(self, beside, name):
        plan, _, moved = beside(name)
        half = merge_adapter(moved["base"], moved["adapter"], plan, scale=0.5)
        leaves = scale_adapter(moved["adapter"], plan, 0.5)
        assert furthest(merge_adapter(moved["base"], leaves, plan), half) < 1e-7

    @pytest.mark.parametrize("name", LINEAR)
    def test_a_sum_changes_by_the_sum_of_changes(self, beside, name):
        plan, _, moved = beside(name)
        other = jax.tree.map(lambda leaf: 2 * leaf + 0.01, moved["adapter"])
        base = moved["base"]

        def change(adapter):
            return jax.tree.map(jnp.subtract, merge_adapter(base, adapter, plan), base)

        both = add_adapters([moved["adapter"], other], plan, [0.25, -2.0])
        wanted = jax.tree.map(
            lambda a, b: 0.25 * a - 2.0 * b, change(moved["adapter"]), change(other)
        )
        assert furthest(change(both), wanted) < 1e-6

    def test_ranks_add_up(self, beside):
        plan, _, moved = beside("rslora")
        both = flatten(add_adapters([moved["adapter"]] * 2, plan, [0.5, 0.5]))
        assert {leaf.shape for path, leaf in both.items() if path.endswith("lora_a")} == {(32, 8)}

    def test_dora_does_not_add_and_says_so(self, beside):
        plan, _, moved = beside("dora")
        with pytest.raises(ValueError, match="dora adapters cannot be added"):
            add_adapters([moved["adapter"]], plan)

    def test_as_many_weights_as_adapters(self, beside):
        plan, _, moved = beside("lora")
        with pytest.raises(ValueError, match="1 adapters and 2 weights"):
            add_adapters([moved["adapter"]], plan, [1.0, 2.0])
