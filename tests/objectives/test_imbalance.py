"""Oracle O23 and the laws of losses for rare classes, grades and maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.objectives import (
    binary_cross_entropy,
    binary_focal_loss,
    cross_entropy,
    dice_cross_entropy,
    dice_loss,
    effective_number_weights,
    focal_loss,
    labelled,
    logit_adjusted,
    ordinal_grades,
    ordinal_loss,
    ordinal_probabilities,
    rank_logits,
    token_cross_entropy,
)

KEY = jax.random.key(0)
LOGITS = 3 * jax.random.normal(KEY, (16, 4))
LABELS = jnp.arange(16) % 4
VALID = (jnp.arange(16) != 3).astype(jnp.float32)


def test_focal_without_gamma_is_cross_entropy():
    weights = jnp.array([1.0, 2.0, 0.5, 3.0])
    for labels in (LABELS, jax.nn.one_hot(LABELS, 4) * 0.7 + 0.075):
        focal = focal_loss(LOGITS, labels, VALID, gamma=0.0, class_weights=weights)
        plain = cross_entropy(LOGITS, labels, VALID, class_weights=weights)
        np.testing.assert_allclose(np.array(focal), np.array(plain), rtol=1e-6)
    yes = (LOGITS > 1).astype(jnp.float32)
    ours = binary_focal_loss(LOGITS, yes, VALID, gamma=0.0)
    np.testing.assert_allclose(
        np.array(ours), np.array(binary_cross_entropy(LOGITS, yes, VALID)), rtol=1e-6
    )


def test_focal_is_optax_focal_and_finite_when_sure():
    import optax

    yes = (jax.random.normal(jax.random.key(1), LOGITS.shape) > 0).astype(jnp.float32)
    ours = binary_focal_loss(LOGITS, yes, gamma=2.0, alpha=0.25)
    theirs = optax.losses.sigmoid_focal_loss(LOGITS, yes, alpha=0.25, gamma=2.0)
    np.testing.assert_allclose(ours.sum, theirs.sum(), rtol=1e-5)
    p = jax.nn.softmax(LOGITS)[jnp.arange(16), LABELS]
    np.testing.assert_allclose(
        focal_loss(LOGITS, LABELS).sum, -jnp.sum((1 - p) ** 2 * jnp.log(p)), rtol=1e-4
    )
    sure = jax.grad(lambda z: focal_loss(z, jnp.array([0]), gamma=0.5).sum)(jnp.array([[200.0, 0]]))
    assert np.isfinite(sure).all()


def test_effective_numbers():
    np.testing.assert_allclose(effective_number_weights([90, 10], 0.0), [1, 1])
    near = effective_number_weights([90, 10], 1 - 1e-9)
    np.testing.assert_allclose(near, [0.2, 1.8], rtol=1e-5)
    counts, beta = np.array([500, 20, 3]), 0.99
    expected = (1 - beta) / (1 - beta**counts)
    np.testing.assert_allclose(
        effective_number_weights(counts, beta), expected * 3 / expected.sum(), rtol=1e-6
    )
    with pytest.raises(ValueError, match="every class needs one or more"):
        effective_number_weights([3, 0])


def test_an_even_prior_adjusts_nothing_and_a_skewed_one_gives_balanced_choices():
    even = logit_adjusted(LOGITS, LABELS, VALID, counts=[7] * 4)
    np.testing.assert_allclose(
        np.array(even), np.array(cross_entropy(LOGITS, LABELS, VALID)), rtol=1e-5
    )
    # The optimum of one feature value: plain logits are p(x|k) up to a constant, without the prior.
    counts = np.array([90, 10])
    z = jnp.zeros(2)
    loss = lambda z: sum(  # noqa: E731
        n * logit_adjusted(z[None], jnp.array([k]), counts=counts).sum for k, n in enumerate(counts)
    )
    slope = jax.jit(jax.grad(loss))
    for _ in range(200):
        z -= 0.05 * slope(z)
    # Here the feature says nothing of the class, so the balanced choice is a tie.
    np.testing.assert_allclose(z[0] - z[1], 0, atol=1e-3)
    # Adjusting again at prediction would choose the rare class always: not the Bayes choice.
    assert np.argmax(np.asarray(z) - np.log(counts / 100)) == 1


def test_a_loss_makes_an_objective():
    objective = labelled(lambda params, batch, key: batch["x"] * params, focal_loss)
    batch = {"x": LOGITS, "labels": LABELS, "valid": VALID}
    loss, aux = objective(1.0, {}, batch, None)
    assert float(loss.weight) == 15
    expected = float(jnp.sum(VALID * (LOGITS.argmax(-1) == LABELS)))
    assert float(aux.metrics["accuracy"].sum) == expected


def test_ordinal_decoding():
    logits = rank_logits(jnp.array([-3.0, 0.0, 3.0]), jnp.array([1.0, 0.0, 2.0]))
    assert (np.diff(logits) < 0).all()
    p = ordinal_probabilities(logits)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    assert p.shape == (3, 4)
    # The grade is the median of the probabilities.
    median = (np.cumsum(p, -1) < 0.5).sum(-1)
    np.testing.assert_array_equal(ordinal_grades(logits), median)
    crossed = ordinal_probabilities(jnp.array([[-1.0, 2.0]]))
    assert float(crossed.min()) >= 0
    np.testing.assert_allclose(crossed.sum(), 1, atol=1e-6)
    # Two grades are binary cross-entropy.
    one, yes = LOGITS[:, :1], (LABELS[:, None] > 1).astype(jnp.float32)
    np.testing.assert_allclose(
        ordinal_loss(one, yes[:, 0].astype(int)).sum, binary_cross_entropy(one, yes).sum, rtol=1e-6
    )


def test_ordinal_prefers_the_nearer_grade():
    right, near, far = (ordinal_loss(jnp.array([[4.0, 4.0, -4.0]]), jnp.array([k])).sum
                        for k in (2, 1, 0))  # fmt: skip
    assert right < near < far


def test_dice():
    labels = jax.random.randint(KEY, (3, 6, 5), 0, 3)
    exact = 50.0 * jax.nn.one_hot(labels, 3)
    assert float(dice_loss(exact, labels).mean) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(-exact, labels).mean) > 0.5
    ignored = labels.at[0, :2].set(-100)
    moved = exact.at[0, :2].set(7.0)
    assert float(dice_loss(moved, ignored).mean) == pytest.approx(0, abs=1e-6)
    logits = jax.random.normal(KEY, (3, 6, 5, 3))
    plain = dice_cross_entropy(logits, labels, dice_weight=0.0)
    np.testing.assert_allclose(plain.mean, token_cross_entropy(logits, labels).mean, rtol=1e-6)
    # A picture is a row: cutting the batch anywhere gives the same total.
    whole = dice_cross_entropy(logits, labels)
    parts = dice_cross_entropy(logits[:1], labels[:1]) + dice_cross_entropy(logits[1:], labels[1:])
    np.testing.assert_allclose(np.array(whole), np.array(parts), rtol=1e-5)
    held = dice_cross_entropy(logits, labels, jnp.array([1.0, 0, 1]))
    one = dice_cross_entropy(logits[::2], labels[::2])
    np.testing.assert_allclose(np.array(held), np.array(one), rtol=1e-5)
