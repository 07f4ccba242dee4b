"""The operations of a step are those of its products, whatever form the program has."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.core import Aux, Loss
from sftjax.train import compile_step, init, make_mesh, make_step, step_flops

ROWS, WIDTH, DEPTH = 8, 32, 3
ONE = 2 * ROWS * WIDTH * WIDTH
"""Operations of one layer, once."""


def counted(function, *args):
    return step_flops(jax.jit(lambda state, fixed, batch: function(*batch)), None, None, args)


def set_up(moves):
    params = {str(k): jax.random.normal(jax.random.key(k), (WIDTH, WIDTH)) for k in range(DEPTH)}

    def objective(params, model_state, batch, key):
        x = batch["x"]
        for k in range(DEPTH):
            x = jnp.tanh(x @ params[str(k)])
        return Loss(x.sum(), ROWS), Aux({})

    tx = optax.sgd(0.1)
    state, fixed = init(params, {k: k in moves for k in params}, tx, jax.random.key(0))
    return make_step(objective, tx), state, fixed, {"x": np.ones((ROWS, WIDTH), np.float32)}


@pytest.mark.parametrize(
    ("moves", "products"),
    [
        ("012", 3 + 3 + 2),  # forward; of each kernel; of each input but the batch
        ("2", 3 + 1),
        ("12", 3 + 2 + 1),
    ],
)
def test_a_step_counts_what_it_must_compute(moves, products):
    step, *given = set_up(moves)
    assert step_flops(compile_step(step), *given) == products * ONE


def test_a_mesh_counts_all_of_its_devices_together():
    step, *given = set_up("012")
    assert step_flops(compile_step(step, make_mesh("data=2,fsdp=4")), *given) == 8 * ONE


def test_a_function_that_was_not_compiled_has_no_count():
    step, *given = set_up("2")
    assert step_flops(step, *given) is None


def test_loops_count_as_often_as_they_run_and_branches_the_longer():
    x, w = jnp.ones((ROWS, WIDTH)), jnp.ones((WIDTH, WIDTH))
    assert counted(lambda x, w: jax.lax.fori_loop(0, 5, lambda _, x: x @ w, x), x, w) == 5 * ONE
    either = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)  # noqa: E731
    assert counted(either, x, w) == 2 * ONE


def test_what_is_computed_again_counts_again():
    x, w = jnp.ones((ROWS, WIDTH)), jnp.ones((WIDTH, WIDTH))

    def total(w, layer):
        return layer(x, w).sum()

    plain = lambda x, w: jnp.sin(x @ w) @ w  # noqa: E731
    once = counted(lambda w: jax.grad(total)(w, plain), w)
    again = counted(lambda w: jax.grad(total)(w, jax.checkpoint(plain)), w)
    assert once == 5 * ONE
    assert again - once >= ONE


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 8)])
def test_a_convolution_and_its_gradients_are_three_of_the_same_size(stride, groups):
    x, w = jnp.ones((2, 8, 8, 8)), jnp.ones((3, 3, 8 // groups, 16))

    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    side = 8 // stride
    one = 2 * (2 * side * side * 16) * (3 * 3 * 8 // groups)
    assert counted(conv, x, w) == one
    both = lambda x, w: jax.grad(lambda x, w: conv(x, w).sum(), (0, 1))(x, w)  # noqa: E731
    assert counted(both, x, w) == pytest.approx(3 * one, rel=0.01)


def test_the_compiler_counts_these_and_little_beside_them():
    step, *given = set_up("012")
    xla = jax.jit(step).lower(*given).cost_analysis()["flops"]
    assert 0.85 * xla < step_flops(jax.jit(step), *given) < xla  # tanh and sums are its alone
