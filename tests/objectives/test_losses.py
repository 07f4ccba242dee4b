"""Losses equal torch's own output, and do not depend on how rows are cut or padded."""

import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.core import Loss
from sftjax.objectives import (
    binary_cross_entropy,
    classification,
    cross_entropy,
    objective_of,
    squared_error,
    token_classification,
    token_cross_entropy,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(7, 5)).astype(np.float32) * 3
LABELS = RNG.integers(0, 5, 7)
WEIGHTS = np.array([0.2, 1.0, 3.0, 0.5, 2.0], np.float32)


def total(losses):
    result = Loss(0.0, 0.0)
    for loss in losses:
        result = result + loss
    return result


@pytest.mark.torch
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_cross_entropy_equals_torch(smoothing, weights):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS),
        torch.tensor(LABELS),
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=smoothing,
    )
    ours = cross_entropy(LOGITS, LABELS, label_smoothing=smoothing, class_weights=weights)
    assert float(ours.mean) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.torch
def test_binary_and_squared_and_token_losses_equal_torch():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    yes = RNG.integers(0, 2, (7, 5)).astype(np.float32)
    theirs = functional.binary_cross_entropy_with_logits(
        torch.tensor(LOGITS), torch.tensor(yes), pos_weight=torch.tensor(WEIGHTS)
    )
    ours = binary_cross_entropy(LOGITS, yes, pos_weight=WEIGHTS)
    assert float(ours.mean) == pytest.approx(float(theirs), rel=1e-5)
    target = RNG.normal(size=7).astype(np.float32)
    theirs = functional.mse_loss(torch.tensor(LOGITS[:, 0]), torch.tensor(target))
    assert float(squared_error(LOGITS[:, :1], target).mean) == pytest.approx(
        float(theirs), rel=1e-5
    )
    tokens = np.where(RNG.random((2, 7)) < 0.3, -100, RNG.integers(0, 5, (2, 7)))
    logits = np.stack([LOGITS, LOGITS[::-1]])
    theirs = functional.cross_entropy(
        torch.tensor(logits.reshape(-1, 5).copy()), torch.tensor(tokens.reshape(-1))
    )
    assert float(token_cross_entropy(logits, tokens).mean) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_any_cut_of_the_rows_gives_the_same_total(cut):
    options = {"label_smoothing": 0.2, "class_weights": WEIGHTS}
    parts = total(
        cross_entropy(LOGITS[rows], LABELS[rows], **options)
        for rows in (slice(cut), slice(cut, None))
    )
    whole = cross_entropy(LOGITS, LABELS, **options)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_filler_rows_change_nothing():
    filled = np.concatenate([LOGITS, np.full((3, 5), 9.0, np.float32)])
    labels = np.concatenate([LABELS, np.zeros(3, LABELS.dtype)])
    valid = np.arange(10) < 7
    options = {"label_smoothing": 0.1, "class_weights": WEIGHTS}
    np.testing.assert_allclose(
        cross_entropy(filled, labels, valid, **options),
        cross_entropy(LOGITS, LABELS, **options),
        rtol=1e-6,
    )
    batch = {"labels": labels, "valid": valid.astype(np.float32)}
    loss, aux = classification(lambda params, batch, key: jnp.asarray(filled))({}, {}, batch, None)
    assert float(loss.weight) == float(aux.metrics["accuracy"].weight) == 7.0


def test_filler_rows_of_tokens_do_not_count():
    batch = {"labels": np.ones((2, 4), np.int32), "valid": np.array([1.0, 0.0])}
    objective = token_classification(lambda params, batch, key: jnp.zeros((2, 4, 3)))
    assert float(objective({}, {}, batch, None)[0].weight) == 4.0


def test_bfloat16_logits_are_summed_in_float32():
    loss = cross_entropy(jnp.asarray(LOGITS, jnp.bfloat16), LABELS)
    assert loss.sum.dtype == jnp.float32


def test_class_weights_must_fit():
    with pytest.raises(ValueError, match="class_weights has shape"):
        cross_entropy(LOGITS, LABELS, class_weights=np.ones(3))


def test_a_head_without_an_objective_is_refused():
    with pytest.raises(ValueError, match="no objective for a mean head"):
        objective_of("mean", "regression", lambda params, batch, key: params)
