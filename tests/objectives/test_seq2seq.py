"""Teacher forcing: torch's label smoothing, masks that no id decides, sums, and teachers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.core import Loss
from sftjax.objectives import (
    distill_teacher,
    sequence_cross_entropy,
    sequence_to_sequence,
    with_teacher,
)


@pytest.fixture(scope="module")
def ragged():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(3, 5, 11)).astype(np.float32) * 3
    labels = draw.integers(0, 11, (3, 5)).astype(np.int32)
    weights = (np.arange(5) < np.array([[5], [3], [1]])).astype(np.float32)
    return logits, labels, weights


@pytest.mark.torch
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradient_equal_torch_and_the_smoother_of_transformers(ragged, smoothing):
    torch = pytest.importorskip("torch")
    from transformers.trainer_pt_utils import LabelSmoother

    logits, labels, weights = ragged
    theirs = torch.tensor(logits, requires_grad=True)
    ignored = torch.tensor(np.where(weights > 0, labels, -100), dtype=torch.long)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(
        theirs.flatten(0, 1), ignored.flatten()
    )
    loss.backward()

    def mean(logits):
        return sequence_cross_entropy(logits, labels, weights, label_smoothing=smoothing).mean

    value, gradient = jax.value_and_grad(mean)(jnp.asarray(logits))
    assert float(value) == pytest.approx(loss.item(), rel=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-7)
    smoother = LabelSmoother(epsilon=smoothing)({"logits": theirs.detach()}, ignored.clone())
    assert float(value) == pytest.approx(smoother.item(), rel=1e-6)


def test_what_does_not_count_changes_nothing(ragged):
    logits, labels, weights = ragged
    wild = np.where(weights[..., None] > 0, logits, np.float32(np.inf))
    ids = np.where(weights > 0, labels, -100)
    at = jax.value_and_grad(lambda z, y: sequence_cross_entropy(z, y, weights).mean)
    assert float(at(logits, labels)[0]) == float(at(wild, ids)[0])
    assert not np.asarray(at(logits, labels)[1])[weights == 0].any()


def test_a_label_that_pads_counts_where_it_is_said_to(ragged):
    """The end token of some models is their padding: the weight decides, not the id."""
    logits, _, weights = ragged
    labels = np.zeros((3, 5), np.int32)
    assert float(sequence_cross_entropy(logits, labels, weights).weight) == 9.0


def test_micro_batches_add_up(ragged):
    parts = [sequence_cross_entropy(*(x[i : i + 1] for x in ragged)) for i in range(3)]
    whole = sequence_cross_entropy(*ragged)
    assert float(sum(parts, Loss(0.0, 0.0)).mean) == pytest.approx(float(whole.mean), rel=1e-6)


def test_z_loss_is_the_squared_log_sum(ragged):
    logits, labels, weights = ragged
    plain = sequence_cross_entropy(logits, labels, weights).sum
    found = sequence_cross_entropy(logits, labels, weights, z_loss=0.5).sum - plain
    log_sum = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    assert float(found) == pytest.approx(0.5 * float((weights * log_sum**2).sum()), rel=1e-5)


def test_filler_rows_do_not_count_and_smoothing_reports_the_plain_loss(ragged):
    logits, labels, weights = ragged
    batch = {"labels": labels, "loss_weights": weights, "valid": jnp.array([1.0, 0.0, 1.0])}
    objective = sequence_to_sequence(lambda p, b, k: p, label_smoothing=0.1)
    loss, aux = objective(jnp.asarray(logits), {}, batch, None)
    kept = sequence_cross_entropy(*(x[[0, 2]] for x in ragged))
    assert float(loss.weight) == 6.0
    assert float(aux.metrics["nll"].mean) == pytest.approx(float(kept.mean), rel=1e-6)
    assert float(loss.mean) != pytest.approx(float(kept.mean), rel=1e-3)


def test_a_teachers_share(ragged):
    logits, labels, weights = ragged
    objective = sequence_to_sequence(lambda p, b, k: p)
    at = with_teacher(
        lambda step: {"labels": labels, "loss_weights": weights},
        lambda params, batch: params,
        jnp.asarray(logits[::-1]),
    )
    batch, here = at(0), jnp.asarray(logits)
    plain = float(objective(here, {}, batch, None)[0].mean)

    def taught(share):
        return distill_teacher(objective, lambda p, b, k: p, share)(here, {}, batch, None)

    loss, aux = taught(0.5)
    divergence = float(aux.metrics["teacher"].mean)
    assert divergence > 0.1
    assert float(loss.mean) == pytest.approx((plain + divergence) / 2, rel=1e-6)
    assert float(taught(0.0)[0].mean) == pytest.approx(plain, rel=1e-6)
    assert float(taught(1.0)[0].mean) == pytest.approx(divergence, rel=1e-6)


def test_refused():
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.0"):
        sequence_to_sequence(lambda p, b, k: p, label_smoothing=1.0)
    with pytest.raises(ValueError, match="no 'loss_weights'"):
        sequence_to_sequence(lambda p, b, k: p)(
            jnp.zeros((1, 1, 2)), {}, {"labels": jnp.zeros((1, 1), int)}, None
        )
    with pytest.raises(ValueError, match="share is 2"):
        distill_teacher(sequence_to_sequence(lambda p, b, k: p), lambda p, b, k: p, 2)
