"""Retrieval, similarity and drift: their invariances, then brute force."""

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from sftjax.evaluate import (
    Undefined,
    kl_divergence,
    linear_cka,
    retention,
    same_group_retrieval,
)

seeds = st.integers(0, 2**32 - 1)


def by_hand(embeddings, groups):
    """Loop over rows; the first of the nearest rows counts."""
    x = np.asarray(embeddings, float)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    hits = []
    for row in range(len(x)):
        if sum(g == groups[row] for g in groups) < 2:
            continue
        cosine = np.array([-9.0 if other == row else x[row] @ x[other] for other in range(len(x))])
        hits.append(groups[int(np.argmax(cosine > cosine.max() - 1e-6))] == groups[row])
    return hits


@settings(deadline=None)
@given(seeds, st.integers(1, 9), st.booleans())
def test_retrieval_equals_a_loop_over_rows_whatever_the_chunk(seed, chunk, tied):
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 4, size=(20, 2)) if tied else rng.normal(size=(20, 3))
    groups = np.append(rng.integers(8, size=18), [0, 0])
    found = same_group_retrieval(x, groups, chunk=chunk)
    assert found.hits.tolist() == by_hand(x, groups.tolist())
    assert found.precision == pytest.approx(np.mean(found.hits))
    assert found.queries + found.excluded == 20


@given(seeds)
def test_retrieval_ignores_length_rotation_and_group_names(seed):
    rng = np.random.default_rng(seed)
    x, groups = rng.normal(size=(30, 4)), np.arange(30) // 3
    turned = (x * rng.uniform(0.5, 2, size=(30, 1))) @ np.linalg.qr(rng.normal(size=(4, 4)))[0]
    names = [f"article {g}" for g in groups]
    assert (
        same_group_retrieval(turned, names).precision == same_group_retrieval(x, groups).precision
    )


def test_rows_alone_in_their_group_are_found_but_not_asked():
    found = same_group_retrieval([[1, 0], [1, 1], [1, 0.1]], [7, 7, 8])
    assert (found.queries, found.excluded) == (2, 1)
    assert found.rows.tolist() == [0, 1]
    assert found.precision == 0.0  # both are nearer to the row that is alone


def test_five_thousand_rows_need_little_memory():
    import tracemalloc

    x, groups = np.random.default_rng(0).normal(size=(5000, 32)), np.arange(5000) // 5
    tracemalloc.start()
    same_group_retrieval(x, groups, chunk=256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # the full matrix of cosines is 100 MB


def test_chance_and_certainty():
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(40, 16)), 5, axis=0)
    groups = np.arange(200) // 5
    assert same_group_retrieval(centres + 0.01 * rng.normal(size=(200, 16)), groups)[0] == 1.0
    assert same_group_retrieval(rng.normal(size=(200, 16)), groups)[0] < 0.1


@given(seeds)
def test_cka_is_one_under_rotation_and_scale_and_symmetric(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 6))
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert linear_cka(x, 3 * x @ turn + 7) == pytest.approx(1)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x))
    assert 0 <= linear_cka(x, y) < 1


@given(seeds)
def test_cka_is_the_alignment_of_centred_gram_matrices(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(20, 4)), rng.normal(size=(20, 3))
    centre = np.eye(20) - 1 / 20
    k, l = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = np.sum(k * l) / np.sqrt(np.sum(k * k) * np.sum(l * l))
    assert linear_cka(x, y) == pytest.approx(expected)


@given(seeds)
def test_kl_equals_scipy_and_ignores_offsets(seed):
    rng = np.random.default_rng(seed)
    z0, z = 3 * rng.normal(size=(2, 10, 4))
    p0, p = scipy.special.softmax(z0, axis=1), scipy.special.softmax(z, axis=1)
    expected = scipy.special.rel_entr(p0, p).sum(axis=1).mean()
    assert kl_divergence(z0, z) == pytest.approx(expected)
    assert kl_divergence(z0 + 5, z - 9) == pytest.approx(expected)
    assert kl_divergence(z, z + 1) == pytest.approx(0, abs=1e-12)


def test_a_report_says_what_was_kept():
    rng = np.random.default_rng(0)
    before, groups = rng.normal(size=(30, 8)), np.arange(30) // 3
    weights = {"layer": {"0": {"w": np.ones(4)}, "1": {"w": np.ones(4)}}, "head": {"w": np.ones(2)}}
    after = {
        "layer": {"0": {"w": np.ones(4)}, "1": {"w": np.full(4, 1.1)}},
        "head": weights["head"],
    }
    anchor = {"layer": weights["layer"]}
    kept = retention(anchor, after, embeddings=(before, before + 1), groups=groups)
    assert kept.tasks[0].before == same_group_retrieval(before, groups).precision
    assert kept.features == (pytest.approx(1), 30)
    lines = str(kept).splitlines()
    assert lines[-4:] == [
        "layer 0     0.000     0.000     0.000        4    0",
        "layer 1     0.200     0.100     0.200        4    0",
        "head        0.000     0.000     0.000        0    2",
        "whole       0.200     0.071     0.200        8    2",
    ]


def test_bad_input_is_named():
    x = np.ones((3, 2))
    with pytest.raises(ValueError, match="row 1 is all zeros"):
        same_group_retrieval(x * [[1], [0], [1]], [0, 0, 0])
    with pytest.raises(ValueError, match="3 embeddings for 2 group ids"):
        same_group_retrieval(x, [0, 0])
    with pytest.raises(Undefined, match="each of the 3 rows is alone"):
        same_group_retrieval(x, [0, 1, 2])
    with pytest.raises(ValueError, match="row 2 is nan"):
        same_group_retrieval(x * [[1], [1], [np.nan]], [0, 0, 0])
    with pytest.raises(ValueError, match="chunk is 0"):
        same_group_retrieval(x, [0, 0, 0], chunk=0)
    with pytest.raises(Undefined, match="first matrix are equal"):
        linear_cka(x, np.eye(3))
    with pytest.raises(ValueError, match=r"logits are \(3, 2\), logits \(3, 3\)"):
        kl_divergence(x, np.eye(3))
    with pytest.raises(ValueError, match="the logits have one column"):
        kl_divergence(x[:, :1], x[:, :1])
