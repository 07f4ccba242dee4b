"""Rates by depth: the two numberings, the law under Adam (O9), several stacks, the report."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sftjax.anchor import adamw, scale_by_rates
from sftjax.core import flatten
from sftjax.select.depth import ULMFIT, layerwise, scaled
from sftjax.select.describe import describe
from sftjax.select.rules import select

N = 3


def params_of(blocks=N):
    return {
        "embeddings": {"word": jnp.zeros(4), "LayerNorm": {"scale": jnp.zeros(4)}},
        "layer": {str(i): {"kernel": jnp.zeros(4), "bias": jnp.zeros(4)} for i in range(blocks)},
        "pooler": jnp.zeros(4),
        "head": {"kernel": jnp.zeros(4)},
    }


@pytest.mark.parametrize(("numbering", "skipped"), [("beit", 0), ("electra", 1)])
def test_numbering(numbering, skipped):
    rates = flatten(layerwise(params_of(), 0.5, numbering=numbering))
    assert rates["head/kernel"] == rates["pooler"] == 1.0
    for block in range(N):
        assert rates[f"layer/{block}/bias"] == 0.5 ** (N - block + skipped)
    assert (
        rates["embeddings/word"] == rates["embeddings/LayerNorm/scale"] == 0.5 ** (N + 1 + skipped)
    )


def test_published_electra_base():
    """12 layers at 0.8: the top layer moves at 0.64, the embeddings at 0.8^14 = 0.04398."""
    rates = flatten(layerwise(params_of(12), 0.8, numbering="electra"))
    assert rates["layer/11/kernel"] == pytest.approx(0.64)
    assert rates["embeddings/word"] == pytest.approx(0.0439805, rel=1e-5)


def test_ulmfit_divides_by_2_6_from_group_to_group():
    rates = flatten(layerwise(params_of(), ULMFIT))
    order = ["head/kernel", "layer/2/bias", "layer/1/bias", "layer/0/bias", "embeddings/word"]
    ratios = [rates[a] / rates[b] for a, b in itertools.pairwise(order)]
    np.testing.assert_allclose(ratios, 2.6, rtol=1e-12)


def test_each_stack_counts_from_its_own_top():
    def run(n):
        return {"embed_positions": 0, "block": [{"w": 0} for _ in range(n)], "final_norm": 0}

    tree = {"shared": 0, "encoder": run(3), "decoder": run(2), "lm_head": 0}
    rates = flatten(layerwise(tree, 0.5))
    assert [rates[f"encoder/block/{i}/w"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert [rates[f"decoder/block/{i}/w"] for i in range(2)] == [0.25, 0.5]
    assert rates["decoder/embed_positions"] == 0.5**3
    assert rates["encoder/embed_positions"] == 0.5**4
    assert rates["shared"] == 0.5**4  # under both: as deep as the higher stack puts it
    assert rates["lm_head"] == rates["encoder/final_norm"] == 1.0


def travel(tx, steps=7):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params_of())
    grads = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def run(params):
        state = tx.init(params)
        for number in range(steps):
            grad = jax.tree.map(lambda g, size=1.0 + 0.3 * number: g * size, grads)
            updates, state = tx.update(grad, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return {path: float(leaf.ravel()[0]) for path, leaf in flatten(run(params)).items()}


@pytest.mark.parametrize("numbering", ["beit", "electra"])
def test_travel_under_adam_is_the_power_of_the_depth(numbering):
    """O9: after k equal-gradient Adam steps, each leaf has gone xi^depth of the head's way."""
    with jax.enable_x64(True):
        rates = layerwise(params_of(), 0.7, numbering=numbering)
        gone = travel(adamw(1e-2, rates=rates, weight_decay=0.0, max_grad_norm=None))
    for path, rate in flatten(rates).items():
        assert gone[path] / gone["head/kernel"] == pytest.approx(rate, rel=1e-12)


def test_before_adam_the_rates_do_nothing():
    """The control of O9: scaled before Adam every ratio is 1, the classic no-op."""
    with jax.enable_x64(True):
        rates = layerwise(params_of(), 0.7)
        tx = optax.chain(scale_by_rates(rates), optax.scale_by_adam(eps=1e-20), optax.scale(-1e-2))
        gone = travel(tx)
    for path in gone:
        assert gone[path] / gone["head/kernel"] == pytest.approx(1.0, rel=1e-12)


def test_scaled_multiplies_and_keeps_what_moves():
    params = params_of()
    chosen = select(params, [("head", 3.0), ("layer/0/bias", 0.0), ("last:3", 2.0)])
    slower = scaled(chosen, layerwise(params, 0.5))
    assert slower.trainable == chosen.trainable
    assert slower.rule == chosen.rule
    rates = flatten(slower.rate)
    assert rates["head/kernel"] == 3.0
    assert rates["layer/2/kernel"] == 1.0
    assert rates["layer/0/kernel"] == 0.25
    assert rates["layer/0/bias"] == rates["embeddings/word"] == 0.0


def test_describe_prints_a_line_for_each_depth():
    params = params_of()
    chosen = scaled(select(params, "all"), layerwise(params, 0.5))
    lines = str(describe(params, chosen)).splitlines()
    cells = [line.rsplit(None, 2) for line in lines[1:-2]]
    assert [(cell[0].split("  ")[0], float(cell[1])) for cell in cells] == [
        ("all: embeddings", 0.0625),
        ("all: head, pooler", 1.0),
        ("all: layer/0", 0.125),
        ("all: layer/1", 0.25),
        ("all: layer/2", 0.5),
    ]
    biases = scaled(select(params, "bias"), layerwise(params, 0.5))
    assert "bias: layer/1/bias" in str(describe(params, biases))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, s: layerwise(p, 0.0), "decay is 0.0"),
        (lambda p, s: layerwise(p, 1.5), "decay is 1.5"),
        (lambda p, s: layerwise(p, float("nan")), "decay is nan"),
        (lambda p, s: layerwise(p, 0.9, numbering="bert"), "'beit' or 'electra'"),
        (lambda p, s: layerwise({"w": 0}, 0.9), "this tree has none .* scan"),
        (lambda p, s: scaled(s, {"other": 1.0}), "no rate for .*; a rate for unknown other"),
        (lambda p, s: scaled(s, {**layerwise(p, 0.5), "pooler": 0.0}), "rate of pooler is 0.0"),
        (lambda p, s: scaled(s, {**layerwise(p, 0.5), "pooler": np.nan}), "rate of pooler is nan"),
    ],
)
def test_rates_that_cannot_be_meant(call, message):
    params = params_of()
    with pytest.raises(ValueError, match=message):
        call(params, select(params, "all"))
