"""What is held is the change of the weights: the product, from the pretrained weights on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.adapters import (
    anchored_change,
    base_outputs,
    change_penalty,
    linear_leaves,
    lora,
    merge_adapter,
    plan_adapter,
    reference_from_base,
    side_branch,
    with_adapter,
)
from sftjax.anchor import add_decayed_difference, anchor_of
from sftjax.core import Aux, Loss, flatten, map_with_path
from sftjax.objectives import classification, distill_logits
from sftjax.select import select
from sftjax.train import compile_step, init, make_step


def started(tiny, name, beside):
    """Joined params of a kind, moved a little from their start."""
    plan, fresh, moved = beside(name)
    return plan, {**moved, "initial": fresh["adapter"]}


def far(adapter):
    """Leaves moved so far that the logits tell."""
    keys = iter(jax.random.split(jax.random.key(5), len(jax.tree.leaves(adapter))))
    return jax.tree.map(
        lambda leaf: leaf + 0.5 * jax.random.normal(next(keys), leaf.shape), adapter
    )


class TestChangePenalty:
    @pytest.mark.parametrize("name", ["lora", "rslora", "embedding", "pissa", "olora", "ia3"])
    def test_is_half_the_squared_distance_of_the_merged_weights(self, tiny, beside, name):
        plan, params = started(tiny, name, beside)
        merged = flatten(merge_adapter(params["base"], params["adapter"], plan))
        wanted = sum(
            np.square(np.asarray(merged[path], np.float64) - np.asarray(leaf, np.float64)).sum()
            for path, leaf in flatten(tiny.params).items()
        )
        assert float(change_penalty(params, plan)) == pytest.approx(wanted / 2, rel=1e-3)

    @pytest.mark.parametrize("name", ["pissa", "olora", "lora"])
    def test_is_zero_with_zero_gradient_at_the_start(self, tiny, beside, name):
        plan, fresh, _ = beside(name)
        params = {**fresh, "initial": fresh["adapter"]}
        value, slope = jax.value_and_grad(
            lambda adapter: change_penalty({**params, "adapter": adapter}, plan)
        )(fresh["adapter"])
        assert float(value) == 0.0
        assert all(not leaf.any() for leaf in jax.tree.leaves(slope))

    def test_factors_of_the_same_product_cost_the_same(self, tiny, beside):
        plan, params = started(tiny, "lora", beside)
        turned = map_with_path(
            lambda path, leaf: leaf * (4.0 if path.endswith("lora_a") else 0.25), params["adapter"]
        )
        one, other = (
            float(change_penalty({**params, "adapter": adapter}, plan))
            for adapter in (params["adapter"], turned)
        )
        assert one == pytest.approx(other, rel=1e-5)

    def test_dora_has_none_and_says_what_to_hold(self, tiny, beside):
        plan, fresh, _ = beside("dora")
        with pytest.raises(ValueError, match="hold the outputs instead"):
            change_penalty(fresh, plan)

    def test_counts_once_an_update_however_it_is_cut(self, tiny):
        plan = plan_adapter(tiny.params, lora(r=2), target_modules=["query"])
        params = with_adapter(tiny.params, plan, jax.random.key(0))
        params["adapter"] = jax.tree.map(lambda leaf: leaf + 0.1, params["adapter"])

        def nothing(params, model_state, batch, key):
            rows = batch["labels"].shape[0]
            return Loss(jnp.zeros(()), jnp.asarray(rows, jnp.float32)), Aux({})

        objective = anchored_change(nothing, plan, 2.0)
        trainable = select(params, [("adapter", 1.0)]).trainable
        batch = {"labels": jnp.zeros(4, jnp.int32)}
        after = []
        for pieces in (1, 2):
            tx = optax.sgd(0.1)
            state, fixed = init(params, trainable, tx, jax.random.key(0))
            state, found = make_step(objective, tx, accumulate=pieces)(state, fixed, batch)
            after.append(flatten(state.trainable))
        assert float(found["loss"]) == pytest.approx(2 * float(change_penalty(params, plan)))
        for path, leaf in after[0].items():
            np.testing.assert_allclose(leaf, after[1][path], rtol=1e-6)


class TestDecoupledPull:
    def test_takes_the_same_share_off_the_change_of_the_weights(self, tiny, beside):
        plan, _, moved = beside("lora")
        start = {**moved, "adapter": jax.tree.map(jnp.zeros_like, moved["adapter"])}
        free = set(flatten(start)) - set(linear_leaves(start, plan))
        trainable = select(start, [("adapter", 1.0)]).trainable
        anchor = anchor_of(start, trainable, new=free)
        assert flatten(anchor).keys() == set(linear_leaves(start, plan))
        tx = optax.chain(add_decayed_difference(0.5), optax.scale(-1.0))
        params = {"adapter": moved["adapter"], "base": jax.tree.map(lambda _: None, moved["base"])}
        still = jax.tree.map(jnp.zeros_like, params)
        updates, _ = tx.update(still, tx.init(params), params, anchor=anchor)
        after: Any = optax.apply_updates(params, updates)

        def change(adapter):
            merged = merge_adapter(moved["base"], adapter, plan)
            return jax.tree.map(jnp.subtract, merged, moved["base"])

        wanted = jax.tree.map(lambda leaf: 0.5 * leaf, change(moved["adapter"]))
        for one, other in zip(
            *map(jax.tree.leaves, (change(after["adapter"]), wanted)), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-7)


class TestReferenceFromBase:
    @pytest.mark.parametrize("start", ["default", "pissa"])
    def test_the_teacher_is_the_model_before_training(self, tiny, start):
        plan = plan_adapter(
            tiny.params, lora(r=2, init_lora_weights=start), target_modules=["output.dense"]
        )
        params = with_adapter(tiny.params, plan, jax.random.key(0))
        params["adapter"] = far(params["adapter"])
        teacher = base_outputs(tiny.model.apply, plan)(params, tiny.batch)
        np.testing.assert_allclose(
            teacher, tiny.model.apply(tiny.params, tiny.batch), rtol=1e-5, atol=1e-7
        )
        tuned = side_branch(tiny.model.apply, plan)(params, tiny.batch)
        assert float(jnp.abs(teacher - tuned).max()) > 1e-6

    def test_pulls_the_outputs_back_without_a_second_copy_of_the_weights(self, tiny):
        plan = plan_adapter(tiny.params, lora(r=2), target_modules=["output.dense", "value"])
        params = with_adapter(tiny.params, plan, jax.random.key(0))
        params["adapter"] = far(params["adapter"])
        apply = side_branch(tiny.model.apply, plan)
        task = classification(apply)
        teacher = base_outputs(tiny.model.apply, plan)

        def only_teacher(params, model_state, batch, key):
            loss, aux = task(params, model_state, batch, key)
            return Loss(0.0 * loss.sum, loss.weight), aux

        objective = reference_from_base(distill_logits(only_teacher, apply, 1.0), teacher)
        tx = optax.adam(1e-2)
        trainable = select(params, [("adapter", 1.0)]).trainable
        state, fixed = init(params, trainable, tx, jax.random.key(0))
        step = compile_step(make_step(objective, tx))
        batch = {**tiny.batch, "labels": jnp.zeros(3, jnp.int32)}
        losses = []
        for _ in range(20):
            state, metrics = step(state, fixed, batch)
            losses.append(float(metrics["loss"]))
        assert losses[0] > 1e-5
        assert losses[-1] < 0.2 * losses[0]
