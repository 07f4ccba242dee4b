"""Talking with a saved model: how words are chosen, where answers end, what pads."""

import json
import sys

import numpy as np
import pytest

sys.path.insert(0, __file__.rpartition("/")[0])
from tiny_llama import write_tiny_llama

from sftjax.data import ChatBatches, Conversation, Table
from sftjax.hub import load_tokenizer
from sftjax.recipes.chat_rows import ChatRows, encode_rows, load_decoder
from sftjax.recipes.talk import Talk, answers, greedy, settings_of_talk, talk

ASKED = "What is a prime number?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose files name no padding token, as Llama's do."""
    made = write_tiny_llama(tmp_path_factory.mktemp("talk") / "llama")
    for name, lost in (("config.json", "pad_token_id"), ("tokenizer_config.json", "pad_token")):
        fields = json.loads((made / name).read_text())
        del fields[lost]
        (made / name).write_text(json.dumps(fields))
    return made


@pytest.fixture(scope="module")
def decoder(folder):
    return load_decoder(folder)


def said_by(folder, *questions, **settings):
    said, asked = [], iter([*questions, "/bye"])
    talk(Talk(str(folder), max_new_tokens=6, **settings), lambda prompt: next(asked), said.append)
    return "".join(said)


def with_generation_config(folder, tmp_path, **fields):
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).symlink_to(path)
    (other / "generation_config.json").write_text(json.dumps(fields))
    return other


def test_what_is_said_piece_by_piece_is_the_greedy_answer(folder, decoder, tmp_path):
    asked = [Conversation(({"role": "user", "content": ASKED},))]
    (whole,) = answers(greedy(decoder, 6), decoder, decoder.params, asked)
    assert len(whole) > 3
    first = said_by(folder, ASKED, "/new", ASKED)
    assert [line.strip() for line in first.splitlines()] == [whole, whole]
    # A token that generation_config.json calls the end ends it, and is not said.
    ids = decoder.tokenizer.backend.encode(whole, add_special_tokens=False).ids
    other = with_generation_config(folder, tmp_path, eos_token_id=[2, ids[0]])
    assert load_decoder(other).stops == (2, ids[0])
    assert said_by(other, ASKED) == "\n(no answer)\n"


def test_draws_are_those_of_the_seed(folder):
    hot = {"temperature": 5.0, "top_k": 0}
    assert said_by(folder, ASKED, seed=1, **hot) == said_by(folder, ASKED, seed=1, **hot)
    assert said_by(folder, ASKED, seed=1, **hot) != said_by(folder, ASKED, seed=2, **hot)


def test_words_are_chosen_as_said_or_as_the_checkpoint_says(folder, decoder, tmp_path):
    plain = settings_of_talk(Talk("x"), decoder)
    assert (plain.do_sample, plain.max_new_tokens, plain.eos_token_id) == (False, 256, (2,))
    cold = settings_of_talk(Talk("x", min_p=0.1, repetition_penalty=1.2), decoder)
    assert (cold.do_sample, cold.min_p, cold.repetition_penalty) == (True, 0.1, 1.2)
    fields = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 5]}
    theirs = load_decoder(with_generation_config(folder, tmp_path, **fields))
    found = settings_of_talk(Talk("x", top_p=0.5), theirs)
    assert (found.do_sample, found.temperature, found.top_p) == (True, 0.6, 0.5)
    assert found.eos_token_id == (2, 5)
    assert not settings_of_talk(Talk("x", do_sample=False), theirs).do_sample


@pytest.mark.parametrize(("settings", "error"), [
    ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
    ({"top_p": 1.5}, "top_p=1.5"),
    ({"min_p": -0.1}, "min_p=-0.1"),
    ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
])  # fmt: skip
def test_numbers_out_of_range_are_refused(decoder, settings, error):
    with pytest.raises(ValueError, match=error):
        settings_of_talk(Talk("x", **settings), decoder)


def test_no_token_that_ends_an_answer_is_refused(decoder):
    with pytest.raises(ValueError, match="says which token ends an answer"):
        settings_of_talk(Talk("x"), decoder._replace(stops=()))


def test_padding_by_the_stop_token_leaves_the_stop_token_learned(folder, decoder):
    with pytest.raises(ValueError, match="names no padding token"):
        load_tokenizer(folder)
    assert decoder.tokenizer.pad_id == 2  # the end of a turn
    rows = [
        [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": answer}]
        for answer in ("No", "No, it is not so at all")
    ]
    chat = encode_rows(Table({"messages": rows}, "rows"), decoder, ChatRows(max_length=128))
    batch = ChatBatches(chat, 2, packing=False).at(0)
    real = batch["segment_ids"] > 0
    assert not real.all()
    assert (batch["input_ids"][~real] == 2).all()
    assert (batch["loss_weights"][~real] == 0).all()
    for ids, weights, own in zip(batch["input_ids"], batch["loss_weights"], real, strict=True):
        last = np.flatnonzero(own & (ids == 2))[-1]
        assert weights[last] == 1
