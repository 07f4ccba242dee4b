"""Laws of image models: cuts, stages, depthwise convolutions, statistics that stand or follow."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from sftjax.anchor.soups import recalibrate
from sftjax.core import Aux, Loss, combine, flatten
from sftjax.models import (
    Head,
    build,
    split,
    statistics_of,
    statistics_policy,
    take_statistics,
)
from sftjax.models.convolution import _by_lax, _by_shifts, _pads, convolve, depthwise
from sftjax.select import describe, frozen_below, layerwise, select, stacks
from sftjax.train.step import init, make_step

VIT = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
CONFIGS = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1],
               "layer_type": "basic"},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320,
                     "num_block_repeats": [1, 2], "kernel_sizes": [3, 5], "strides": [1, 2],
                     "in_channels": [32, 16], "out_channels": [16, 24], "expand_ratios": [1, 6]},
    "convnext": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "vgg": {"hidden_sizes": [8, 16], "depths": [1, 2], "dense_sizes": [16, 16],
            "batch_norm": True, "pooled_size": 2},
    "vit": VIT,
    "deit": VIT,
    "dinov2": VIT | {"mlp_ratio": 2},
}  # fmt: skip
NORMED = ["resnet", "efficientnet", "vgg"]


def model_of(family, kind="image", stage="", **more):
    labels = ("a", "b", "c") if kind in ("image", "segment") else ()
    head = Head(kind, labels, stage=stage)
    return build({"model_type": family, **CONFIGS[family], **more}, head)


def batch(rows=4, side=16, seed=1):
    return {"pixel_values": jax.random.normal(jax.random.key(seed), (rows, side, side, 3))}


def params_of(model):
    """Draw params without a compile a leaf: around 1 in norms, small in kernels."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        numbers = rng.standard_normal(leaf.shape, np.float32)
        return jnp.asarray(1 + 0.1 * numbers if leaf.ndim == 1 else 0.2 * numbers)

    return jax.tree.map(draw, model.shapes())


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_cut_anywhere_is_the_model(family):
    model = model_of(family)
    params = params_of(model)
    (stack,) = stacks(params)
    assert len(stack.blocks) == model.num_blocks
    parts = [split(model, blocks) for blocks in (0, 1, model.num_blocks)]

    @jax.jit
    def outputs(params, batch):
        joined = [upper(params, {"hidden": lower(params, batch)}, None) for lower, upper in parts]
        return model.apply(params, batch), joined

    whole, joined = outputs(params, batch())
    assert whole.shape == (4, 3)
    for output in joined:
        np.testing.assert_allclose(output, whole, atol=1e-5 * float(jnp.abs(whole).max()))
    with pytest.raises(ValueError, match="cannot be cut above"):
        split(model, model.num_blocks + 1)
    with pytest.raises(ValueError, match="needs their maps"):
        split(model_of(family, "map", model.stages[-1]), 1)


@pytest.mark.parametrize("family", CONFIGS)
def test_rules_by_blocks(family):
    model = model_of(family)
    shapes = model.shapes()
    chosen = select(shapes, "last:1", still=model.statistics)
    moving = {path for path, moves in flatten(chosen.trainable).items() if moves}
    assert moving
    assert not moving & {*model.statistics}
    assert frozen_below(chosen.trainable) == model.num_blocks - 1
    rates = flatten(layerwise(shapes, 0.5))
    assert len({*rates.values()}) == model.num_blocks + (2 if family != "vgg" else 1)


@pytest.mark.parametrize("family", CONFIGS)
def test_heads_and_stages(family):
    model = model_of(family)
    sizes = {}
    for stage in model.stages:
        one = model_of(family, "map", stage)
        sizes[stage] = jax.eval_shape(one.apply, one.shapes(), batch()).shape
        features = model_of(family, "features", stage)
        pooled = jax.eval_shape(features.apply, features.shapes(), batch()).shape
        assert pooled == (4, sizes[stage][-1])
    heights = [shape[1] for shape in sizes.values()]
    assert heights == sorted(heights, reverse=True)
    dense = model_of(family, "segment")
    assert jax.eval_shape(dense.apply, dense.shapes(), batch()).shape == (4, 16, 16, 3)
    with pytest.raises(ValueError, match=f"no stage 'stage9'; its stages are .*{model.stages[0]}"):
        model_of(family, "map", "stage9")


def test_bad_images_are_told():
    model = model_of("vit")
    for pixels, message in (
        (jnp.zeros((1, 18, 16, 3)), "cuts them into patches of 4; resize"),
        (jnp.zeros((1, 16, 16, 1)), r"reads \(rows, height, width, 3\)"),
        (jnp.zeros((16, 16, 3)), "Channels come last"),
        (jnp.zeros((1, 16, 16, 3), jnp.uint8), "normalise them first"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.apply, model.shapes(), {"pixel_values": pixels})
    with pytest.raises(ValueError, match="no pixel_values, only"):
        model.apply({}, {"input_ids": 1})


@pytest.mark.parametrize(
    ("window", "stride", "padding"),
    [(3, 1, "SAME"), (5, 2, ((1, 2), (1, 2))), (2, 3, ((0, 0), (0, 1)))],
)
def test_both_ways_of_a_depthwise_convolution_give_the_same(window, stride, padding):
    x = jax.random.normal(jax.random.key(0), (2, 9, 10, 6))
    kernel = jax.random.normal(jax.random.key(1), (window, window, 1, 6))
    pads = _pads(x.shape[1:3], (window, window), (stride, stride), padding)

    def loss(way, x, kernel):
        return jnp.sum(jnp.sin(way(x, kernel, stride, pads)))

    one, other = (
        jax.jit(jax.value_and_grad(partial(loss, way), argnums=(0, 1)))(x, kernel)
        for way in (_by_shifts, _by_lax)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, other)


def test_the_cpu_runs_no_grouped_convolution_and_others_do():
    x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 1, 4))
    run = jax.jit(lambda x, kernel: depthwise(x, kernel, 1, "SAME"))
    assert " convolution(" not in run.lower(x, kernel).compile().as_text()
    lowered = export.export(run, platforms=["tpu"])(x, kernel).mlir_module()
    assert "feature_group_count = 4" in lowered


@pytest.mark.parametrize(
    ("side", "width", "window", "strides", "padding", "short"),
    [
        ((5, 6), 8, 1, (1, 1), "SAME", True),
        ((5, 6), 8, 1, (2, 3), "VALID", True),
        ((3, 2), 64, 3, (1, 1), "SAME", True),
        ((4, 5), 64, 3, (2, 2), ((1, 1), (0, 1)), True),
        ((5, 6), 8, 3, (1, 1), "SAME", False),  # a large map is the library's
        ((5, 6), 8, 1, (1, 1), ((1, 1), (1, 1)), False),
    ],
)
def test_short_ways_of_a_convolution_give_the_same(side, width, window, strides, padding, short):
    x = jax.random.normal(jax.random.key(0), (2, *side, width))
    kernel = jax.random.normal(jax.random.key(1), (window, window, width, 7)) / width

    def plain(x, kernel, strides, padding):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=dims)

    def value(way, x, kernel):
        y = way(x, kernel, strides, padding)
        return jnp.sum(jnp.sin(y)), y

    runs = [
        jax.jit(jax.value_and_grad(partial(value, way), argnums=(0, 1), has_aux=True))
        for way in (convolve, plain)
    ]
    one, other = (run(x, kernel) for run in runs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)
    assert (" convolution(" not in runs[0].lower(x, kernel).compile().as_text()) == short
    lowered = export.export(runs[0], platforms=["tpu"])(x, kernel).mlir_module()
    assert "stablehlo.convolution" in lowered  # as other machines have it
    half = jax.eval_shape(
        lambda x, kernel: convolve(x, kernel, strides, padding),
        x.astype(jnp.bfloat16),
        kernel.astype(jnp.bfloat16),
    )
    assert half.dtype == jnp.bfloat16


def objective(model):
    def run(params, model_state, batch, key):
        logits, moved = model.apply_moving(params, model_state, batch, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return Loss(losses.sum(), jnp.float32(len(losses))), Aux({}, moved)

    return run


@pytest.mark.parametrize("family", NORMED)
def test_adapting_statistics_follow_and_frozen_ones_never_move(family):
    model = model_of(family)
    params = params_of(model)
    chosen = select(params, "last:1", still=model.statistics)
    policy = statistics_policy(params, chosen.trainable)
    assert policy.adapt
    assert policy.frozen
    assert "stand still" in str(policy)
    assert str(policy) in str(describe(params, chosen, policy=policy))
    assert "(statistics)" in str(describe(params, chosen))
    rest, statistics = take_statistics(params, policy.adapt)
    chosen = select(rest, "last:1", still=policy.frozen)
    tx = optax.adamw(1e-2, weight_decay=0.1)
    state, fixed = init(rest, chosen.trainable, tx, jax.random.key(1), model_state=statistics)
    step = jax.jit(make_step(objective(model), tx))
    for seed in range(2):
        labelled = batch(seed=seed) | {"label": jnp.arange(4) % 3}
        state, metrics = step(state, fixed, labelled)
    assert bool(jnp.isfinite(metrics["loss"]))
    after = flatten(combine(state.trainable, fixed.frozen, state.model_state))
    before = flatten(params)
    assert after.keys() == before.keys()
    for path in policy.frozen:
        assert np.array_equal(after[path], before[path])
    for path in policy.adapt:
        assert not np.array_equal(after[path], before[path])


def test_running_statistics_are_the_batches_own_in_the_end():
    """Recalibrated, the running statistics of one batch are that batch's: both modes agree."""
    model = model_of("resnet")
    params = params_of(model)
    rest, statistics = take_statistics(params, model.statistics)

    apply_moving = jax.jit(model.apply_moving)

    def apply(params, statistics, batch):
        return apply_moving(params, statistics, batch)[1]

    measured = recalibrate(apply, rest, statistics, [batch(32)])
    moving, _ = apply_moving(rest, measured, batch(32))
    still = jax.jit(model.apply)(combine(rest, measured), batch(32))
    np.testing.assert_allclose(moving, still, atol=0.02 * float(jnp.abs(moving).max()))


def test_policies_that_cannot_be():
    params = model_of("resnet").shapes()
    assert len(statistics_of(params)) == 2 * 8
    frozen = select(params, "head").trainable
    assert not statistics_policy(params, frozen).adapt
    with pytest.raises(ValueError, match="a frozen trunk's statistics never move"):
        statistics_policy(params, frozen, {"resnet/embedder": "adapt"})
    with pytest.raises(ValueError, match="'thaw' is unknown; known: frozen, adapt"):
        statistics_policy(params, frozen, "thaw")
    with pytest.raises(ValueError, match="matches none of the 16"):
        statistics_policy(params, frozen, {"classifier": "frozen"})
    moving = select(params, "all", still=statistics_of(params)).trainable
    again = statistics_policy(params, moving, {"resnet/embedder": "recalibrate"})
    assert (len(again.recalibrate), len(again.adapt), len(again.frozen)) == (2, 14, 0)
    with pytest.raises(ValueError, match="no leaf of these params"):
        select(params, "all", still=["nowhere/mean"])


def test_one_value_a_channel_has_no_variance():
    model = model_of("efficientnet")
    rest, statistics = take_statistics(params_of(model), model.statistics)
    with pytest.raises(ValueError, match="sees one value of each channel"):
        model.apply_moving(rest, statistics, batch(1, 2))


def test_dropped_paths_drop_whole_rows():
    model = model_of("convnext", drop_path_rate=0.5, layer_scale_init_value=1.0)
    params = params_of(model)
    apply = jax.jit(model.apply)
    drawn = [np.asarray(apply(params, batch(), jax.random.key(seed))) for seed in range(4)]
    assert any(not np.allclose(drawn[0], other) for other in drawn[1:])
    rows = {tuple(row.round(4)) for row in np.stack(drawn)[:, 0]}
    assert len(rows) == 2  # the one branch that can be dropped is there, or it is not
