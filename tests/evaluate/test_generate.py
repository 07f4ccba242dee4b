"""Generation of a model that is a table: greedy, beams, samples, the same wherever it runs."""

import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.evaluate.generate import compile_generate, compile_stream, generate
from sftjax.evaluate.generate_scores import NOTHING, follow_rules
from sftjax.evaluate.generate_settings import GenerationSettings, read_settings, settings_of
from sftjax.models.decoding import Decoder

VOCABULARY, END, ROOM = 5, 1, 4
TABLE = jnp.asarray(np.random.default_rng(3).normal(size=(VOCABULARY, VOCABULARY)) * 1.5)
MARKOV = Decoder(
    lambda params, batch, room: (
        params[batch["input_ids"][:, -1]],
        jnp.zeros(len(batch["input_ids"])),
    ),
    lambda params, tokens, cache: (params[tokens], cache + 1),
)
BATCH = {"input_ids": np.array([[2], [3], [4], [2], [3], [4], [0], [2]], np.int32)}


def settings(**more):
    return GenerationSettings(max_new_tokens=ROOM, eos_token_id=(END,), pad_token_id=0)._replace(
        **more
    )


def texts(out):
    return [
        row[:n].tolist()
        for row, n in zip(np.asarray(out.tokens), np.asarray(out.lengths), strict=True)
    ]


def log_probability(prompt, text):
    table = np.asarray(jax.nn.log_softmax(TABLE, -1))
    return sum(table[a, b] for a, b in itertools.pairwise([prompt, *text]))


def every_text():
    """All that can be written in the room."""
    for length in range(1, ROOM + 1):
        for text in itertools.product(range(VOCABULARY), repeat=length):
            if END not in text[:-1] and (text[-1] == END or length == ROOM):
                yield text


def test_greedy_follows_the_likeliest_and_stops():
    out = generate(MARKOV, TABLE, BATCH, settings())
    for prompt, text in zip(BATCH["input_ids"][:, 0], texts(out), strict=True):
        expected, last = [], int(prompt)
        while len(expected) < ROOM and last != END:
            last = int(TABLE[last].argmax())
            expected.append(last)
        assert text == expected


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_wide_enough_finds_the_best_text(penalty):
    out = generate(
        MARKOV, TABLE, BATCH, settings(num_beams=60, length_penalty=penalty, early_stopping="never")
    )
    for prompt, text, score in zip(BATCH["input_ids"][:, 0], texts(out), out.scores, strict=True):
        scores = {t: log_probability(prompt, t) / len(t) ** penalty for t in every_text()}
        assert tuple(text) == max(scores, key=scores.__getitem__)
        assert float(score) == pytest.approx(max(scores.values()), abs=1e-5)


def test_samples_are_drawn_as_often_as_is_likely():
    many = {"input_ids": np.full((4000, 1), 2, np.int32)}
    sampled = compile_generate(MARKOV, settings(do_sample=True, max_new_tokens=2, temperature=2.0))
    first = np.asarray(sampled(TABLE, many, jax.random.key(0)).tokens)[:, 0]
    expected = np.asarray(jax.nn.softmax(TABLE[2] / 2.0))
    share = np.bincount(first, minlength=VOCABULARY) / 4000
    assert np.abs(share - expected).max() < 4 * np.sqrt(0.25 / 4000)
    narrow = compile_generate(MARKOV, settings(do_sample=True, top_k=2, top_p=0.99))
    allowed = set(np.argsort(TABLE[2])[-2:].tolist())
    assert {text[0] for text in texts(narrow(TABLE, many, jax.random.key(1)))} <= allowed


@pytest.mark.parametrize("more", [{}, {"num_beams": 3}, {"do_sample": True}], ids=str)
def test_eight_devices_give_what_one_gives(more):
    key = jax.random.key(5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    one = compile_generate(MARKOV, settings(**more))(TABLE, BATCH, key)
    eight = compile_generate(MARKOV, settings(**more), mesh=mesh)(TABLE, BATCH, key)
    assert np.array_equal(one.tokens, eight.tokens)
    assert np.array_equal(one.lengths, eight.lengths)
    with pytest.raises(ValueError, match="3 rows cannot be dealt out to 8 devices"):
        compile_generate(MARKOV, settings(), mesh=mesh)(
            TABLE, {"input_ids": BATCH["input_ids"][:3]}
        )


@pytest.mark.parametrize("more", [{}, {"num_beams": 3}, {"do_sample": True}], ids=str)
def test_the_last_open_rows_go_on_alone_and_write_the_same(more):
    """Every row of 8 says what it says alone, though the longest went on in a batch of 2."""
    # Word w is mostly followed by w + 1, and 9 ends.
    table = jnp.eye(10, k=1) * 5.0 + np.random.default_rng(0).normal(size=(10, 10))
    prompts = np.array([8, 7, 8, 8, 1, 8, 2, 7], np.int32)[:, None]
    seen = []

    def step(params, tokens, cache):
        seen.append(len(tokens))
        return MARKOV.step(params, tokens, cache)

    chosen = settings(max_new_tokens=12, eos_token_id=(9,), **more)
    beams, key = more.get("num_beams", 1), jax.random.key(5)
    watched = MARKOV._replace(step=step)
    out = generate(watched, table, {"input_ids": prompts}, chosen, key)
    assert set(seen) == {8 * beams, 2 * beams}
    lengths = np.sort(out.lengths)
    assert lengths[5] + 3 < lengths[6]
    alone = jax.jit(lambda prompt, row: generate(MARKOV, table, {"input_ids": prompt}, chosen,
                                                 key, rows=row))  # fmt: skip
    for row, text in enumerate(texts(out)):
        assert texts(alone(prompts[row : row + 1], jnp.array([row])))[0] == text


@pytest.mark.parametrize("more", [{}, {"do_sample": True, "no_repeat_ngram_size": 2}], ids=str)
def test_a_stream_says_what_generate_gives(more):
    key, said = jax.random.key(2), []
    out = compile_stream(MARKOV, settings(**more))(TABLE, BATCH, said.append, key)
    whole = generate(MARKOV, TABLE, BATCH, settings(**more), key)
    assert np.array_equal(out.tokens, whole.tokens)
    assert np.array_equal(np.stack(said, 1), np.asarray(whole.tokens)[:, : len(said)])


def test_a_row_does_not_depend_on_its_neighbours_and_a_shape_is_compiled_once():
    traced = MARKOV._replace(start=chex.assert_max_traces(MARKOV.start, n=2))
    run = compile_generate(traced, settings(do_sample=True))
    key = jax.random.key(0)
    all_rows = run(TABLE, BATCH, key)
    again = run(TABLE, BATCH, key)
    few = run(TABLE, {"input_ids": BATCH["input_ids"][:3]}, key)
    assert np.array_equal(all_rows.tokens, again.tokens)
    assert np.array_equal(all_rows.tokens[:3], few.tokens)


def test_prompts_count_for_rules_wherever_their_padding_is():
    ids = np.array([[2, 3, 2, 0], [0, 2, 3, 2]], np.int32)
    mask = np.array([[1, 1, 1, 0], [0, 1, 1, 1]], np.int32)
    flat = Decoder(
        lambda params, batch, room: (jnp.zeros((2, VOCABULARY)).at[:, 3].set(1.0), ()),
        lambda params, tokens, cache: (jnp.zeros((2, VOCABULARY)), cache),
    )
    once = settings(no_repeat_ngram_size=2, max_new_tokens=1)
    out = generate(flat, None, {"input_ids": ids, "attention_mask": mask}, once)
    assert out.tokens.tolist() == [[0], [0]]  # "2 3" was there, so 3 may not follow 2


def test_rules():
    scores, history = jnp.zeros((1, VOCABULARY)), jnp.full((1, 1 + ROOM), NOTHING).at[:, 0].set(2)

    def allowed(written, **more):
        out = follow_rules(scores, history, jnp.int32(written), 1, settings(**more))
        return np.flatnonzero(np.isfinite(out[0])).tolist()

    assert allowed(0, min_new_tokens=2) == [0, 2, 3, 4]
    assert allowed(2, min_new_tokens=2) == [0, 1, 2, 3, 4]
    assert allowed(0, min_length=2) == [0, 2, 3, 4]
    assert allowed(0, forced_bos_token_id=3) == [3]
    assert allowed(1, forced_bos_token_id=3) == [0, 1, 2, 3, 4]
    assert allowed(ROOM - 1, forced_eos_token_id=END) == [END]
    assert allowed(0, suppress_tokens=(0, 4)) == [1, 2, 3]
    assert allowed(1, begin_suppress_tokens=(0,)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("fields", "message"), [
    ({"typical_p": 0.5}, "typical_p=0.5 is not supported"),
    ({"bad_words_ids": [[1, 2]]}, "several tokens"),
    ({"num_beams": 2, "do_sample": True}, "do_sample with num_beams=2"),
    ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
    ({"early_stopping": "soon"}, "early_stopping='soon'"),
    ({"max_new_tokens": 0}, "leaves nothing to generate"),
])  # fmt: skip
def test_settings_that_cannot_be_followed_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        settings_of(fields)


def test_settings_are_read_from_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="has neither"):
        read_settings(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1, "num_beams": 4}))
    assert read_settings(tmp_path).num_beams == 4
    said = {"eos_token_id": [1, 2], "max_length": 9, "transformers_version": "5"}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    read = read_settings(tmp_path, num_beams=2)
    assert (read.num_beams, read.eos_token_id, read.pad_token_id) == (2, (1, 2), 1)
    assert (read.room(1), read._replace(max_new_tokens=3).room(1)) == (8, 3)
    with pytest.raises(ValueError, match="beams: no settings of generation"):
        read_settings(tmp_path, beams=3)


def test_a_missing_key_and_a_missing_room_are_refused():
    with pytest.raises(ValueError, match="do_sample needs a key"):
        generate(MARKOV, TABLE, BATCH, settings(do_sample=True))
    with pytest.raises(ValueError, match="no room after prompts of 1 tokens"):
        generate(MARKOV, TABLE, BATCH, settings(max_new_tokens=None, max_length=1))
    with pytest.raises(ValueError, match="only at its end"):
        compile_stream(MARKOV, settings(num_beams=2))
