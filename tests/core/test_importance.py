"""An importance is checked by form where there are no values yet, and by value where there are."""

import jax
import jax.numpy as jnp
import pytest

from sftjax.core.importance import check_finite, check_form

ANCHOR = {"trunk": jnp.zeros((3, 2)), "head": None}


@pytest.mark.parametrize(("importance", "message"), [
    ({"trunk": jnp.ones((3, 1)), "head": None}, r"importance of trunk has shape \(3, 1\)"),
    ({"trunk": None, "head": None}, "the anchor holds trunk"),
    ({"trunk": jnp.ones((3, 2)), "head": jnp.ones(1)}, "importance of head, which is not anch"),
])  # fmt: skip
def test_the_form_is_checked_while_tracing(importance, message):
    with pytest.raises(ValueError, match=message):
        check_form(importance, ANCHOR)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(check_form, importance, ANCHOR)


@pytest.mark.parametrize("odd", [jnp.nan, jnp.inf, -jnp.inf])
def test_values_are_checked_where_there_are_any(odd):
    wrong = {"trunk": jnp.ones((3, 2)).at[1, 1].set(odd), "head": None}
    with pytest.raises(ValueError, match="importance of trunk is not finite"):
        check_finite(wrong)
    jax.eval_shape(check_finite, wrong)
    check_finite(ANCHOR)
