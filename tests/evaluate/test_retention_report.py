"""The one call: what is measured is right, what is not is said, and all of it is JSON."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftjax.evaluate.moved import moved
from sftjax.evaluate.retention import COLUMNS, RETRIEVAL, retention
from sftjax.evaluate.retrieval import same_group_retrieval
from sftjax.evaluate.similarity import kl_divergence, linear_cka
from sftjax.evaluate.tables import table, table_markdown

rng = np.random.default_rng(0)
GROUPS = np.arange(60) // 4
CENTRES = np.repeat(rng.normal(size=(15, 8)), 4, axis=0)
BEFORE = CENTRES + 0.3 * rng.normal(size=(60, 8))
AFTER = CENTRES + 1.5 * rng.normal(size=(60, 8))
LOGITS = rng.normal(size=(2, 50, 3))
ANCHOR = {"layer": {"0": {"w": np.ones((2, 2))}, "1": {"w": np.ones((2, 2))}}}
PARAMS = {
    "layer": {"0": {"w": np.ones((2, 2))}, "1": {"w": np.full((2, 2), 1.1)}},
    "head": {"w": np.ones(2)},
}


def everything(**changed):
    given = {
        "embeddings": (BEFORE, AFTER),
        "logits": (LOGITS[0], LOGITS[1]),
        "groups": GROUPS,
        "tasks": {"old classes": (np.ones(40), np.repeat([1, 0], [30, 10]))},
        "reference": "editorials",
    }
    return retention(ANCHOR, PARAMS, **given | changed)


def test_each_part_is_what_its_own_function_measures():
    kept = everything()
    assert kept.moved == moved(ANCHOR, PARAMS)
    assert kept.features == (pytest.approx(linear_cka(BEFORE, AFTER)), 60)
    assert kept.outputs == (pytest.approx(kl_divergence(*LOGITS)), 50)
    retrieval, classes = kept.tasks
    assert retrieval.before == same_group_retrieval(BEFORE, GROUPS).precision
    assert retrieval.after == same_group_retrieval(AFTER, GROUPS).precision
    assert retrieval.before > 0.9 > retrieval.after
    assert classes[:3] == ("old classes", 1.0, 0.75)
    for task in kept.tasks:
        assert task.forgotten.value == pytest.approx(task.before - task.after)
        assert 0 < task.forgotten.low < task.forgotten.value < task.forgotten.high


def test_the_whole_is_the_blocks_together():
    whole = everything().whole
    assert whole.distance == pytest.approx(0.2)
    assert whole.relative == pytest.approx(0.2 / np.sqrt(8))
    assert whole.spectral == pytest.approx(0.2)
    assert (whole.scalars, whole.new) == (8, 2)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_the_same_model_forgets_nothing(seed):
    rng = np.random.default_rng(seed)
    x, z = rng.normal(size=(20, 3)), rng.normal(size=(20, 4))
    kept = retention(
        ANCHOR, ANCHOR, embeddings=(x, x), logits=(z, z), groups=np.arange(20) // 2, resamples=20
    )
    assert kept.whole[1:3] == (0.0, 0.0)
    assert kept.features.value == pytest.approx(1)
    assert kept.outputs.value == 0.0
    assert kept.tasks[0].forgotten[:3] == (0.0, 0.0, 0.0)


def test_turning_the_tables_turns_the_sign():
    there = everything()
    back = everything(
        embeddings=(AFTER, BEFORE),
        tasks={"old classes": (np.repeat([1, 0], [30, 10]), np.ones(40))},
    )
    for one, other in zip(there.tasks, back.tasks, strict=True):
        assert other.forgotten.value == pytest.approx(-one.forgotten.value)
        assert other.forgotten.low == pytest.approx(-one.forgotten.high, abs=0.03)


def test_the_interval_draws_whole_groups():
    # Ten groups in which all rows agree are ten observations, not forty.
    lost = np.repeat(np.arange(10) < 5, 4)
    x = np.repeat(np.eye(10), 4, axis=0)
    y = np.where(lost[:, None], np.roll(x, 1, axis=0), x) + 0.0
    y[lost] += 2 * np.tile(np.eye(10)[6:10], (5, 1))
    groups = np.arange(40) // 4
    task = retention(ANCHOR, PARAMS, embeddings=(x, y), groups=groups).tasks[0]
    assert (task.before, task.after) == (1.0, 0.5)
    alone = retention(ANCHOR, PARAMS, tasks={"a": (np.ones(40), ~lost)}).tasks[0]
    width = task.forgotten.high - task.forgotten.low
    assert width > 1.5 * (alone.forgotten.high - alone.forgotten.low)


def test_what_is_not_given_is_said_to_be_not_measured():
    kept = retention(ANCHOR, PARAMS)
    assert (kept.features, kept.outputs, kept.tasks) == (None, None, ())
    said = str(kept)
    assert said.count("not measured") == 3
    for what in ("labelled task", "linear CKA", "KL(p0 || p)"):
        assert any(what in line and "not measured" in line for line in said.splitlines())
    notes = {row["measure"]: row["note"] for row in kept.rows()}
    assert notes["forgotten"] == notes["linear CKA"] == notes["KL(p0 || p)"] == "not measured"
    assert notes["distance"] == ""
    full = everything()
    assert "not measured" not in str(full)
    assert not any(row["note"] == "not measured" for row in full.rows())


def test_rows_are_plain_and_make_a_table():
    rows = everything().rows()
    assert all(tuple(row) == COLUMNS for row in rows)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    found = {(row["measure"], row["of"]): row for row in rows}
    assert found["distance", "layer 1"]["value"] == pytest.approx(0.2)
    assert found["spectral", "whole"]["rows"] == 8
    lost = found["forgotten", RETRIEVAL]
    assert lost["low"] < lost["value"] < lost["high"]
    assert lost["note"] == "95% interval"
    assert found["linear CKA", "editorials"]["rows"] == 60
    for draw in (table, table_markdown):
        assert len(draw(rows, COLUMNS).splitlines()) >= len(rows) + 1


def test_text_names_the_data_and_shows_every_block():
    kept = everything(groups=[*GROUPS[:-4], *range(90, 94)])
    lines = str(kept).splitlines()
    assert lines[0] == "retention, measured on editorials"
    assert lines[1].endswith("(56 rows, 4 left out)")
    assert lines[2].startswith("old classes: 1.000 before, 0.750 after, forgotten 0.250 [0.")
    assert [line.split("  ")[0] for line in lines[-4:]] == ["layer 0", "layer 1", "head", "whole"]


def test_collapsed_features_are_a_finding_and_a_block_of_zeros_is_said():
    kept = retention({"w": np.zeros(2)}, {"w": np.ones(2)}, embeddings=(BEFORE, np.ones((60, 8))))
    assert np.isnan(kept.features.value)
    assert "pretrained: undefined (60 rows)" in str(kept)
    notes = {row["measure"]: row["note"] for row in kept.rows()}
    assert notes["linear CKA"] == "undefined"
    assert notes["relative"] == "infinite"
    json.dumps(kept.rows(), allow_nan=False)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="groups are given without embeddings"):
        retention(ANCHOR, PARAMS, groups=GROUPS)
    with pytest.raises(ValueError, match="embeddings: 60 rows before and 59 after"):
        retention(ANCHOR, PARAMS, embeddings=(BEFORE, AFTER[1:]))
    with pytest.raises(ValueError, match=r"embeddings: expected \(before, after\), got 60"):
        retention(ANCHOR, PARAMS, embeddings=BEFORE)
    bad = LOGITS[1].copy()
    bad[2] = np.nan
    with pytest.raises(ValueError, match="logits, after: row 2 is nan"):
        retention(ANCHOR, PARAMS, logits=(LOGITS[0], bad))
    with pytest.raises(ValueError, match="logits have one column"):
        retention(ANCHOR, PARAMS, logits=(LOGITS[0, :, :1], LOGITS[1, :, :1]))
    with pytest.raises(ValueError, match="task 'a', before: expected shape"):
        retention(ANCHOR, PARAMS, tasks={"a": (BEFORE, AFTER)})
    with pytest.raises(ValueError, match="60 embeddings for 3 group ids"):
        retention(ANCHOR, PARAMS, embeddings=(BEFORE, AFTER), groups=[0, 0, 1])
    with pytest.raises(ValueError, match="holds 1 leaves that the params lack"):
        retention(PARAMS, ANCHOR)
