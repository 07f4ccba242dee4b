"""A table reads the same from both sides."""

import pytest

from sftjax.hub import WEIGHT_MAPS
from sftjax.hub.names import place, place_all, place_paths

FAMILIES = sorted(WEIGHT_MAPS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_is_its_own_inverse(family):
    table = WEIGHT_MAPS[family]
    for number in ("0", "11"):
        rows = [row for row in table.rows if not row.tensor.endswith("decoder.weight")]
        paths = [row.path.format(number, number) for row in rows]
        names = [place(table, path).tensor for path in paths]
        assert names == [row.tensor.format(number, number) for row in rows]
        placed = place_all(table, names, tied=False)
        assert list(placed.places) == paths
        assert placed.unknown == ()
        assert [placed.places[path] for path in paths] == [place(table, path) for path in paths]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_rows_meet(family):
    table = WEIGHT_MAPS[family]
    names = [row.tensor for row in table.rows] + [row.legacy for row in table.rows if row.legacy]
    assert len(set(names)) == len(names)
    assert len({row.path for row in table.rows}) == len(table.rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_prefix_and_old_names_mean_the_same(family):
    table = WEIGHT_MAPS[family]
    trunk = [row for row in table.rows if row.tensor.startswith(table.trunk + ".")]
    full = place_all(table, [row.tensor.format(3, 3) for row in trunk]).places
    old = [(row.legacy or row.tensor).format(3, 3) for row in trunk]
    for names in (old, [name.removeprefix(table.trunk + ".") for name in old]):
        placed = place_all(table, names)
        assert placed.unknown == ()
        assert {p: s.axes for p, s in placed.places.items()} == {p: s.axes for p, s in full.items()}
    flax = place_paths(table, [path.removeprefix(table.trunk + "/") for path in full])
    assert flax.places.keys() == full.keys()


def test_ties_and_buffers_are_told_apart_from_weights():
    placed = place_all(
        WEIGHT_MAPS["bert"],
        [
            "embeddings.position_ids",
            "embeddings.word_embeddings.weight",
            "cls.predictions.decoder.weight",
            "cls.predictions.bias",
            "cls.predictions.decoder.bias",
        ],
    )
    assert placed.buffers == ("embeddings.position_ids",)
    assert placed.aliases == {
        "cls.predictions.decoder.weight": "bert/embeddings/word_embeddings/embedding",
        "cls.predictions.decoder.bias": "cls/predictions/bias",
    }


def test_an_alias_alone_stands_for_its_leaf():
    placed = place_all(WEIGHT_MAPS["roberta"], ["lm_head.decoder.bias"])
    assert placed.places["lm_head/bias"].tensor == "lm_head.decoder.bias"
    assert placed.aliases == {}


def test_an_untied_decoder_owns_its_kernel_and_the_bias_it_computes_with():
    names = ["lm_head.bias", "lm_head.decoder.weight", "lm_head.decoder.bias"]
    placed = place_all(WEIGHT_MAPS["roberta"], names, tied=False)
    assert placed.places["lm_head/decoder/kernel"] == ("lm_head.decoder.weight", (1, 0))
    assert placed.places["lm_head/bias"].tensor == "lm_head.decoder.bias"
    assert placed.aliases == {"lm_head.bias": "lm_head/bias"}


def test_a_leaf_named_twice_and_a_stranger_are_unknown():
    table = WEIGHT_MAPS["bert"]
    names = ["pooler.dense.weight", "bert.pooler.dense.weight", "encoder.layer.0.oops"]
    assert place_all(table, names).unknown == tuple(names[1:])
    paths = ["pooler/dense/kernel", "bert/pooler/dense/kernel", "oops"]
    assert place_paths(table, paths).unknown == tuple(paths[1:])
