"""Oracles O21 and O22, and where a model looks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.evaluate import (
    MemoryBank,
    as_grid,
    attention_rollout,
    auroc,
    energy_score,
    fit_gaussians,
    fit_memory_bank,
    fit_neighbours,
    grad_cam,
    knn_score,
    mahalanobis_score,
    msp_score,
    overlays,
    patch_distances,
    patch_features,
    picture_scores,
    relative_mahalanobis_score,
)
from sftjax.evaluate.patchcore import greedy_centers

RNG = np.random.default_rng(0)


def test_energy_shifts_where_softmax_does_not():
    logits = jnp.asarray(RNG.normal(size=(8, 5)), jnp.float32)
    np.testing.assert_allclose(energy_score(logits + 3), energy_score(logits) - 3, atol=1e-5)
    np.testing.assert_allclose(msp_score(logits + 3), msp_score(logits), atol=1e-6)


def test_knn_does_not_see_the_scale_of_normalized_features():
    known, new = RNG.normal(size=(40, 6)), jnp.asarray(RNG.normal(size=(7, 6)), jnp.float32)
    state = fit_neighbours(known)
    scored = jax.jit(knn_score, static_argnames="k")(state, new, k=3)
    np.testing.assert_allclose(knn_score(state, 5 * new, 3), scored, atol=1e-5)
    unit = known / np.linalg.norm(known, axis=1, keepdims=True)
    at = np.asarray(new) / np.linalg.norm(new, axis=1, keepdims=True)
    expected = np.sort(np.linalg.norm(at[:, None] - unit, axis=-1), 1)[:, 2]
    np.testing.assert_allclose(scored, expected, atol=1e-5)
    np.testing.assert_allclose(knn_score(state, jnp.asarray(known, jnp.float32), 1), 0, atol=1e-3)


def test_mahalanobis():
    labels = np.arange(60) % 3
    features = RNG.normal(size=(60, 4)) @ RNG.normal(size=(4, 4)) + labels[:, None] * 3
    state = fit_gaussians(features, labels, shrinkage=0.0)
    new = RNG.normal(size=(9, 4)) * 3
    means = np.stack([features[labels == c].mean(0) for c in range(3)])
    inverse = np.linalg.inv(np.cov((features - means[labels]).T, bias=True))
    each = np.einsum("ncd,de,nce->nc", *[new[:, None] - means, inverse, new[:, None] - means])
    np.testing.assert_allclose(
        mahalanobis_score(state, jnp.asarray(new, jnp.float32)), each.min(1), rtol=1e-3
    )
    away = new - features.mean(0)
    whole = np.einsum("nd,de,ne->n", away, np.linalg.inv(np.cov(features.T, bias=True)), away)
    np.testing.assert_allclose(
        relative_mahalanobis_score(state, jnp.asarray(new, jnp.float32)),
        each.min(1) - whole, rtol=1e-3, atol=1e-2,
    )  # fmt: skip
    # A covariance shrunk to the identity's multiple is Euclidean.
    round_ = fit_gaussians(features, labels, shrinkage=1.0)
    spread = np.square(features - means[labels]).mean()
    near = np.square(new[:, None] - means).sum(-1).min(1) / spread
    np.testing.assert_allclose(
        mahalanobis_score(round_, jnp.asarray(new, jnp.float32)), near, rtol=1e-3
    )
    with pytest.raises(ValueError, match="classes of \\[1, 0, 1\\] rows"):
        fit_gaussians(features[:2], [0, 2])


def test_the_linear_direction_has_its_closed_form_auroc():
    from statistics import NormalDist

    shift = np.array([0.9, 0.0, 1.2])
    a, b = RNG.normal(size=(4000, 3)), RNG.normal(size=(4000, 3)) + shift
    found = auroc(np.concatenate([a, b]) @ shift, np.repeat([0, 1], 4000))
    assert found == pytest.approx(NormalDist().cdf(1.5 / np.sqrt(2)), abs=0.01)


def test_patchcore_oracles():
    patches = RNG.normal(size=(6, 4, 4, 5)).astype(np.float32) + 20
    whole = fit_memory_bank(patches, 1.0)
    np.testing.assert_array_equal(patch_distances(whole, jnp.asarray(patches)), 0)
    new = RNG.normal(size=(3, 4, 4, 5)).astype(np.float32) + 20
    flat = patches.reshape(-1, 5)
    exact = np.linalg.norm(new.reshape(-1, 1, 5) - flat, axis=-1).min(1).reshape(3, 4, 4)
    np.testing.assert_allclose(patch_distances(whole, jnp.asarray(new), 7), exact, rtol=1e-4)
    np.testing.assert_allclose(
        picture_scores(whole, jnp.asarray(new), 1), exact.max((1, 2)), rtol=1e-4
    )
    weighed = picture_scores(whole, jnp.asarray(new), 9)
    assert ((weighed > 0) & (weighed < exact.max((1, 2)))).all()
    bank = fit_memory_bank(patches, 0.25, project=None)
    assert bank.patches.shape == (24, 5)
    kept = {tuple(row) for row in flat.tolist()}
    assert all(tuple(row) in kept for row in np.asarray(bank.patches).tolist())
    cover = np.linalg.norm(flat[:, None] - np.asarray(bank.patches), axis=-1).min(1).max()
    assert float(bank.radius) == pytest.approx(cover, rel=1e-4)


def test_greedy_radius_falls_and_is_at_most_twice_the_best():
    from itertools import combinations

    points = RNG.normal(size=(12, 2)).astype(np.float32)
    indices, radii = greedy_centers(jnp.asarray(points), 6)
    assert len(set(indices.tolist())) == 6
    assert (np.diff(radii) <= 1e-6).all()
    apart = np.linalg.norm(points[:, None] - points, axis=-1)
    best = min(apart[list(c)].min(0).max() for c in combinations(range(12), 3))
    assert float(radii[2]) <= 2 * best + 1e-5


def test_a_defect_is_found_where_it_is():
    maps = [RNG.normal(size=(10, 8, 8, 4)) * 0.1, RNG.normal(size=(10, 4, 4, 6)) * 0.1]
    normal = patch_features(*(jnp.asarray(m, jnp.float32) for m in maps))
    bank = fit_memory_bank(normal[:8], 0.5)
    odd = normal[8:].at[1, 5, 2].add(3.0)
    heat = patch_distances(bank, odd)
    assert np.unravel_index(int(heat[1].argmax()), (8, 8)) == (5, 2)
    scores = picture_scores(bank, odd)
    assert scores[1] > 3 * scores[0]
    # Averaging leaves a constant map as it is, at the border too.
    np.testing.assert_allclose(patch_features(jnp.ones((1, 3, 3, 2))), 1, rtol=1e-6)


def test_grad_cam_of_a_linear_head_is_its_weighted_map():
    features = jnp.asarray(RNG.normal(size=(2, 3, 3, 4)), jnp.float32)
    head = jnp.asarray(RNG.normal(size=(4, 5)), jnp.float32)
    classes = jnp.array([1, 4])
    found = jax.jit(lambda a, c: grad_cam(lambda x: x.mean((1, 2)) @ head, a, c))(features, classes)
    expected = jnp.maximum(jnp.einsum("nhwd,dn->nhw", features, head[:, classes]) / 9, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_rollout_follows_attention():
    # Every token attends to token 2 alone: all that reaches the class token is patch 2.
    one = jnp.broadcast_to(jax.nn.one_hot(2, 5), (3, 1, 2, 5, 5))
    shown = attention_rollout(one, residual=0.0)
    np.testing.assert_allclose(shown, [[0, 1, 0, 0]])
    random = jax.nn.softmax(jnp.asarray(RNG.normal(size=(3, 2, 2, 10, 10)), jnp.float32))
    total = np.eye(10)
    for layer in np.asarray(random[:, 0]).mean(1):
        total = (0.5 * np.eye(10) + 0.5 * layer) @ total
    np.testing.assert_allclose(
        attention_rollout(random)[0], total[0, 1:] / total[0, 1:].sum(), rtol=1e-5
    )
    assert as_grid(attention_rollout(random)).shape == (2, 3, 3)
    with pytest.raises(ValueError, match="give the size"):
        as_grid(jnp.zeros((1, 8)))


def test_overlays_are_drawn_in_the_right_place(tmp_path):
    from PIL import Image

    pictures = np.full((4, 16, 24, 3), 0.5)
    heat = np.zeros((4, 4, 6))
    heat[:, 0, 0] = 1
    path = overlays(pictures, heat, tmp_path / "o.png", scale=(0, 1), titles=["a"], title="b")
    assert np.asarray(Image.open(path)).std() > 5
    with pytest.raises(ValueError, match="4 pictures and 3 maps"):
        overlays(pictures, heat[:3], path)
    assert isinstance(fit_memory_bank(np.ones((4, 2)), 1.0), MemoryBank)
