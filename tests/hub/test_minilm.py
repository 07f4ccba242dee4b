"""The real MiniLM: loaded, fine-tuned into a classifier's shape, saved and opened again."""

import hashlib

import jax
import numpy as np
import pytest

from sftjax.core import count
from sftjax.hub import TensorFile, load, load_tokenizer, save

pytestmark = pytest.mark.assets

TEXTS = ["A moving, beautifully acted film.", "Dull, dull, dull."]


def test_an_unchanged_load_is_saved_byte_for_byte(tmp_path, minilm):
    model, params, report = load(minilm)
    data = (minilm / "model.safetensors").read_bytes()
    assert report.sha256 == hashlib.sha256(data).hexdigest()
    assert (model.head.kind, report.new) == ("hidden", ())
    assert report.buffers == ("embeddings.position_ids",)
    save(tmp_path, model, params, report=report)
    before, after = (
        TensorFile(minilm / "model.safetensors"),
        TensorFile(tmp_path / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert all(
        before[name].dtype == after[name].dtype and before[name].tobytes() == after[name].tobytes()
        for name in before
    )


def test_a_classifier_on_it(tmp_path, minilm):
    model, params, report = load(minilm, head="sequence", labels=("bad", "good"))
    assert report.new == ("classifier/bias", "classifier/kernel")
    assert count(params) == 22_713_216 + 2 * 384 + 2
    save(tmp_path, model, params, report=report)
    for name in report.tokenizer_files:
        assert (tmp_path / name).read_bytes() == (minilm / name).read_bytes()
    assert load(tmp_path).model.head == model.head


def test_the_tokenizer_is_transformers(minilm):
    transformers = pytest.importorskip("transformers")
    ours, theirs = load_tokenizer(minilm), transformers.AutoTokenizer.from_pretrained(minilm)
    texts = [*TEXTS, "", "naïve café — 東京!", "word " * 400]
    expected = theirs(texts, truncation=False, padding=False)
    encoded = ours.encode(texts)
    assert [e.ids for e in encoded] == expected["input_ids"]
    assert [e.type_ids for e in encoded] == expected["token_type_ids"]
    assert (ours.vocab_size, ours.max_length, ours.pad_id) == (30522, 512, 0)
    pair = ours.encode(TEXTS[:1], TEXTS[1:])[0]
    expected = theirs(*TEXTS)
    assert (pair.ids, pair.type_ids) == (expected["input_ids"], expected["token_type_ids"])


@pytest.mark.torch
def test_torch_computes_the_same_with_what_was_saved(tmp_path, minilm):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, params, report = load(minilm, head="sequence", labels=("bad", "so so", "good"))
    save(tmp_path, model, params, report=report)
    auto = transformers.AutoModelForSequenceClassification
    theirs, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        TEXTS, padding=True, truncation=False, return_tensors="np"
    )
    with torch.no_grad():
        expected = theirs.eval()(**{k: torch.from_numpy(v) for k, v in tokens.items()}).logits
    batch = {name: array.astype(np.int32) for name, array in tokens.items()}
    logits = jax.jit(model.apply)(params, batch)
    np.testing.assert_allclose(logits, expected.numpy(), atol=2e-5, rtol=0)
