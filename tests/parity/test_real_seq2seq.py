"""The real Flan-T5-small computes what torch computes, and writes the same 50 texts."""

import jax
import numpy as np
import pytest

from sftjax.data import retrieval_set
from sftjax.evaluate.generate import compile_generate
from sftjax.evaluate.generate_settings import read_settings
from sftjax.hub import load, load_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.assets]

PROMPTS = (
    "Translate English to German: The house is wonderful.",
    "Translate English to French: I have two brothers and a sister.",
    "What is the capital of Germany?",
    "Is this review positive or negative? I would not watch this film again.",
)
OPENINGS = ("summarize: ", "Write a title: ", "Translate English to German: ", "")
COUNT, LENGTH, ROOM = 50, 48, 16


@pytest.fixture(scope="module")
def real(flan_t5, rated_sentences):
    """Both models, and 50 inputs: a few prompts, and newspapers' sentences under four openings."""
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(flan_t5).eval()
    model, params, report = load(flan_t5)
    assert report.new == ()
    said = list(retrieval_set(rated_sentences)["text"][:200])
    texts = [*PROMPTS, *(OPENINGS[i % 4] + text for i, text in enumerate(said))]
    encoded = [one.ids for one in load_tokenizer(flan_t5).encode(texts)]
    encoded = [one for one in encoded if len(one) <= LENGTH][:COUNT]
    ids, mask = np.zeros((2, COUNT, LENGTH), np.int32)
    for row, one in enumerate(encoded):
        ids[row, : len(one)], mask[row, : len(one)] = one, 1
    return theirs, model, params, {"input_ids": ids, "attention_mask": mask}


def tensors(arrays):
    return {name: torch.from_numpy(array).long() for name, array in arrays.items()}


def test_logits(real):
    theirs, model, params, arrays = real
    ids = arrays["input_ids"]
    batch = arrays | {"decoder_input_ids": np.concatenate([0 * ids[:, :1], ids[:, :7]], 1)}
    batch = {name: array[:8] for name, array in batch.items()}
    with torch.no_grad():
        expected = theirs(**tensors(batch)).logits.numpy()
    ours = np.asarray(jax.jit(model.apply)(params, batch))
    assert np.abs(ours - expected).max() <= 2e-4


@pytest.mark.parametrize("beams", [1, 4])
def test_fifty_texts_token_for_token(real, flan_t5, beams):
    theirs, model, params, arrays = real
    settings = read_settings(flan_t5, num_beams=beams, max_new_tokens=ROOM)
    out = compile_generate(model.decoder, settings)(params, arrays)
    with torch.no_grad():
        whole = theirs.generate(
            **tensors(arrays), num_beams=beams, max_new_tokens=ROOM, do_sample=False
        )
    assert len(set(map(tuple, whole.tolist()))) > 0.9 * COUNT
    for row, length, expected in zip(out.tokens, out.lengths, whole[:, 1:].tolist(), strict=True):
        assert row[: int(length)].tolist() == expected[: int(length)]
        assert set(expected[int(length) :]) <= {0, 1}
