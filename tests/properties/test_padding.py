"""Padding says nothing: of rows padded to another length, loss and gradients are the same (O28)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.core import Loss, flatten
from sftjax.models import Head, bert, build
from sftjax.objectives import classification, token_classification

SIZES = dict.fromkeys(bert.SIZES, 16) | {
    "vocab_size": 40,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 16,
}


def batch_of(length: int, kind: str) -> dict[str, jax.Array]:
    """Three rows of 3, 6 and 8 tokens, padded to a length."""
    draw = np.random.default_rng(0)
    counts, ids = (3, 6, 8), np.zeros((3, length), np.int32)
    labels = np.zeros((3, length), np.int32)
    mask = np.zeros((3, length), np.int32)
    for row, count in enumerate(counts):
        ids[row, :count] = draw.integers(1, 40, count)
        labels[row, :count] = draw.integers(0, 2, count)
        mask[row, :count] = 1
    batch = {"input_ids": ids, "attention_mask": mask}
    if kind == "token":
        batch |= {"labels": np.where(mask, labels, -100)}
    else:
        batch |= {"labels": labels[:, 0]}
    return {name: jnp.asarray(value) for name, value in batch.items()}


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_loss_and_gradients_do_not_know_the_padded_length(kind):
    model = build({"model_type": "bert", **SIZES}, Head(kind, ("bad", "good")))
    params = model.init(jax.random.key(0))
    objective = (classification if kind == "sequence" else token_classification)(model.apply)

    @jax.jit
    def run(params, batch):
        def total(params):
            loss, _ = objective(params, {}, batch, None)
            return loss.sum, loss

        (_, loss), grads = jax.value_and_grad(total, has_aux=True)(params)
        return loss, grads

    losses: list[Loss] = []
    gradients = []
    for length in (8, 13):
        loss, grads = run(params, batch_of(length, kind))
        losses.append(loss)
        gradients.append(grads)
    assert float(losses[0].weight) == float(losses[1].weight) == (3 if kind == "sequence" else 17)
    np.testing.assert_allclose(losses[0].sum, losses[1].sum, rtol=1e-6)
    for path, one in flatten(gradients[0]).items():
        np.testing.assert_allclose(one, flatten(gradients[1])[path], atol=2e-6, err_msg=path)
    assert all(
        float(jnp.abs(grad).max()) > 0
        for path, grad in flatten(gradients[0]).items()
        if path.endswith("query/kernel")
    )
