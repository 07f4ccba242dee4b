"""Each row of a batch by its own adapter gives what each adapter gives alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.adapters import adapter_bank, side_branch, stack_adapters


def three(moved):
    """Three adapters of one plan, each elsewhere."""
    return [jax.tree.map(lambda leaf, by=by: by * leaf, moved["adapter"]) for by in (1, -2, 5)]


@pytest.mark.parametrize("name", ["lora", "embedding", "dora", "ia3", "ia3-input"])
def test_each_row_is_served_by_the_adapter_it_names(tiny, beside, name):
    plan, _, moved = beside(name)
    adapters, ids = three(moved), jnp.array([2, 0, 1])
    bank = {"adapter": stack_adapters(adapters), "base": moved["base"]}
    found = jax.jit(adapter_bank(tiny.model.apply, plan))(bank, {**tiny.batch, "adapter_ids": ids})
    alone = jax.jit(side_branch(tiny.model.apply, plan))
    each = [alone({**bank, "adapter": adapter}, tiny.batch) for adapter in adapters]
    assert float(jnp.abs(each[0] - each[2]).max()) > 1e-7
    wanted = jnp.stack([each[number][row] for row, number in enumerate(ids)])
    np.testing.assert_allclose(found, wanted, atol=2e-8)


def test_the_same_program_serves_any_assignment_and_no_other_adapter(tiny, beside):
    plan, _, moved = beside("lora")
    bank = {"adapter": stack_adapters(three(moved)), "base": moved["base"]}
    run = jax.jit(adapter_bank(tiny.model.apply, plan))
    serve = run.lower(bank, {**tiny.batch, "adapter_ids": jnp.zeros(3, int)}).compile()
    same = serve(bank, {**tiny.batch, "adapter_ids": jnp.array([2, 2, 2])})
    mixed = serve(bank, {**tiny.batch, "adapter_ids": jnp.array([2, 3, 2])})
    assert np.isfinite(same).all()
    assert np.isnan(mixed[1]).all()
    np.testing.assert_array_equal(mixed[jnp.array([0, 2])], same[jnp.array([0, 2])])


def test_gradients_stay_with_the_adapters_that_rows_name(tiny, beside):
    plan, _, moved = beside("rslora")
    bank = stack_adapters(three(moved))
    run = adapter_bank(tiny.model.apply, plan)
    batch = {**tiny.batch, "adapter_ids": jnp.array([1, 1, 1])}

    def loss(adapter):
        return jnp.square(run({"adapter": adapter, "base": moved["base"]}, batch)).sum()

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(bank)):
        assert not leaf[jnp.array([0, 2])].any()
        assert leaf[1].any()


def test_what_does_not_fit_is_refused(tiny, beside):
    plan, _, moved = beside("lora")
    other = beside("rslora")[2]["adapter"]
    bank = {"adapter": stack_adapters(three(moved)), "base": moved["base"]}
    with pytest.raises(ValueError, match=r"no 'adapter_ids' \(B,\)"):
        adapter_bank(tiny.model.apply, plan)(bank, tiny.batch)
    with pytest.raises(ValueError, match="adapters 0 and 1: only one of them has a leaf"):
        stack_adapters([moved["adapter"], other])
    with pytest.raises(ValueError, match="at least one adapter"):
        stack_adapters([])
    embedding, _, moved = beside("embedding")
    bank = {"adapter": stack_adapters(three(moved)), "base": moved["base"]}
    with pytest.raises(ValueError, match="are not 4 rows; leave it out"):
        adapter_bank(tiny.model.apply, embedding)(
            bank, {**tiny.batch, "adapter_ids": jnp.zeros(4, int)}
        )
