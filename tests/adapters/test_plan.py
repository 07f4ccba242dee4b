"""Targets are PEFT's words, and what does not fit is refused before anything is allocated."""

import jax
import jax.numpy as jnp
import pytest

from sftjax.adapters import attach, check_adapter, dora, ia3, lora, plan_adapter, shapes_of
from sftjax.core import flatten, nbytes


def paths(plan):
    return [site.path for site, _ in plan.sites]


class TestTargets:
    def test_all_linear_is_every_dense_layer_but_the_new_ones(self, tiny):
        plan = plan_adapter(tiny.params, lora(r=2), new=["classifier/kernel", "classifier/bias"])
        named = {path.rpartition("/")[0] for path in flatten(tiny.params) if "kernel" in path}
        assert set(paths(plan)) == named - {"classifier"}
        assert len(paths(plan)) == 13  # six for each of two blocks, and the pooler

    def test_a_name_is_the_end_of_a_path(self, tiny):
        plan = plan_adapter(tiny.params, lora(r=2), target_modules=["query"])
        assert [path.rpartition("layer/")[2] for path in paths(plan)] == [
            "0/attention/self/query",
            "1/attention/self/query",
        ]

    def test_dots_and_slashes_mean_the_same_and_both_output_layers_are_met(self, tiny):
        by_dot = plan_adapter(tiny.params, lora(r=2), target_modules=["output.dense"])
        by_slash = plan_adapter(tiny.params, lora(r=2), target_modules=["output/dense"])
        assert paths(by_dot) == paths(by_slash)
        assert len(by_dot.sites) == 4

    def test_one_string_is_an_expression_over_the_whole_dotted_path(self, tiny):
        plan = plan_adapter(tiny.params, lora(r=2), target_modules=r".*layer\.1\..*\.(query|key)")
        assert len(plan.sites) == 2
        with pytest.raises(ValueError, match="'query' names no module"):
            plan_adapter(tiny.params, lora(r=2), target_modules="query")

    def test_a_pattern_has_wildcards(self, tiny):
        plan = plan_adapter(tiny.params, lora(r=2), target_modules=["**/layer/0/**"])
        assert len(plan.sites) == 6

    def test_layers_and_exclusions_narrow_it(self, tiny):
        plan = plan_adapter(
            tiny.params, lora(r=2), exclude_modules=["query", "pooler.dense"],
            layers_to_transform=[1],
        )  # fmt: skip
        assert len(plan.sites) == 5
        assert all("/layer/1/" in path for path in paths(plan))

    def test_plans_of_several_kinds_add_up(self, tiny):
        plan = plan_adapter(tiny.params, lora(r=2), target_modules=["query"]) + plan_adapter(
            tiny.params, ia3(), target_modules=["value"]
        )
        assert [kind.name for kind in plan.kinds] == ["lora", "ia3"]
        adapter = flatten(attach(tiny.params, plan, jax.random.key(0))[0])
        assert sum(path.endswith("value/ia3") for path in adapter) == 2

    def test_shapes_need_no_arrays(self, tiny):
        shapes = tiny.model.shapes()
        plan = plan_adapter(shapes, dora(r=2))
        found = shapes_of(plan, shapes)
        given = attach(tiny.params, plan, jax.random.key(0))[0]
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), given
        )
        assert nbytes(found) == nbytes(given)


class TestRefused:
    @pytest.mark.parametrize(
        ("targets", "words"),
        [
            (["qeury"], "'qeury' names no module; nearest .*: query"),
            (["LayerNorm"], "names .*LayerNorm .*; name the linear modules"),
            (["bert"], "names bert .* sits beside a kernel or embedding"),
        ],
    )
    def test_targets_without_a_linear_leaf(self, tiny, targets, words):
        with pytest.raises(ValueError, match=words):
            plan_adapter(tiny.params, lora(r=2), target_modules=targets)

    def test_a_rank_above_a_dimension(self, tiny):
        with pytest.raises(ValueError, match=r"rank r=33 is larger than a dimension of .*\(32, 32"):
            plan_adapter(tiny.params, lora(r=33), target_modules=["query"])

    def test_two_kinds_on_one_module(self, tiny):
        one = plan_adapter(tiny.params, lora(r=2), target_modules=["query", "key"])
        other = plan_adapter(tiny.params, ia3(), target_modules=["key", "value"])
        with pytest.raises(ValueError, match="self/key would get two adapters, lora and ia3"):
            _ = one + other

    def test_layers_that_are_not_there(self, tiny):
        with pytest.raises(ValueError, match=r"layers_to_transform=\[7\] leaves none"):
            plan_adapter(tiny.params, lora(r=2), layers_to_transform=[7])

    @pytest.mark.parametrize("r", [0, -1, 2.0, True])
    def test_ranks_that_are_none(self, r):
        with pytest.raises(ValueError, match="a rank is an integer of 1 or more"):
            lora(r=r)

    def test_settings_that_are_none(self):
        with pytest.raises(ValueError, match=r"a rate is in \[0, 1\)"):
            lora(lora_dropout=1.0)
        with pytest.raises(ValueError, match="init_lora_weights='svd'; known: default"):
            lora(init_lora_weights="svd")  # type: ignore[arg-type]

    def test_an_adapter_of_another_base(self, tiny):
        plan = plan_adapter(tiny.params, lora(r=2), target_modules=["query"])
        adapter, base = attach(tiny.params, plan, jax.random.key(0))
        check_adapter(adapter, plan, base)
        wider = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), base)
        with pytest.raises(ValueError, match=r"made for a kernel of shape \(32, 32\).* \(64, 32\)"):
            check_adapter(adapter, plan, wider)
        with pytest.raises(ValueError, match="made for another model"):
            check_adapter(adapter, plan, {"roberta": {}})

    def test_leaves_of_another_plan(self, tiny):
        plan = plan_adapter(tiny.params, lora(r=2), target_modules=["query"])
        more = plan_adapter(tiny.params, lora(r=2), target_modules=["query", "key"])
        wide = plan_adapter(tiny.params, lora(r=3), target_modules=["query"])
        adapter = attach(tiny.params, plan, jax.random.key(0))[0]
        with pytest.raises(ValueError, match="self/key/lora_a: the plan needs it"):
            check_adapter(adapter, more, tiny.params)
        with pytest.raises(ValueError, match=r"has shape \(32, 2\), and needs \(32, 3\)"):
            check_adapter(adapter, wide, tiny.params)
