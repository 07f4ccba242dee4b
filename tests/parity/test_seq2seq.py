"""Torch's logits, losses, gradients and generated tokens are ours, for every encoder-decoder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.core import flatten
from sftjax.evaluate.generate import compile_generate
from sftjax.evaluate.generate_settings import read_settings, settings_of
from sftjax.hub import load, load_tokenizer, save
from sftjax.hub.names import place
from sftjax.hub.seq2seq_names import SEQ2SEQ
from sftjax.models import shift_right

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

T5 = {
    "vocab_size": 40, "d_model": 64, "d_kv": 12, "d_ff": 96, "num_layers": 1, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": 40, "d_model": 64, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 80, "max_position_embeddings": 32, "decoder_start_token_id": 2,
}  # fmt: skip
MARIAN = {"pad_token_id": 39, "eos_token_id": 0, "forced_eos_token_id": 0}
CASES = {
    "t5": ("T5", T5),
    "t5-1.1": ("T5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5-gated-tied": ("T5", T5 | {"feed_forward_proj": "gated-silu", "num_decoder_layers": 2}),
    "mt5": ("MT5", T5 | {"feed_forward_proj": "gated-gelu"}),
    "bart": ("Bart", BART | {"scale_embedding": True}),
    "mbart": ("MBart", BART | {"activation_function": "relu"}),
    "pegasus": ("Pegasus", BART | {"scale_embedding": True, "decoder_start_token_id": 0}),
    "marian": ("Marian", BART | MARIAN | {"activation_function": "swish"}),
}


def torch_model(name, scale=0.1, **more):
    stem, fields = CASES[name]
    torch.manual_seed(0)
    suffix = "MTModel" if stem == "Marian" else "ForConditionalGeneration"
    config = getattr(transformers, f"{stem}Config")(**fields, **more)
    model = getattr(transformers, stem + suffix)(config).eval()
    if name == "t5-1.1":  # version 5 ties this head in memory, whatever the config said
        model.lm_head = torch.nn.Linear(64, 40, bias=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += scale * torch.randn_like(parameter)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias += 0.3 * torch.randn_like(model.final_logits_bias)
    return model


def batch(length=20):
    rng = np.random.default_rng(0)
    ids, targets = (rng.integers(3, 38, (3, n)).astype(np.int32) for n in (length, 17))
    mask, target_mask = np.ones_like(ids), np.ones_like(targets)
    mask[1, 9:], mask[2, :4], target_mask[1, 7:] = 0, 0, 0
    return {
        "input_ids": ids, "attention_mask": mask, "decoder_input_ids": targets,
        "decoder_attention_mask": target_mask,
    }  # fmt: skip


def tensors(arrays):
    return {name: torch.from_numpy(np.array(array)).long() for name, array in arrays.items()}


def logits_of(model, arrays):
    with torch.no_grad():
        return model(**tensors(arrays)).logits.numpy()


@pytest.mark.parametrize("name", CASES)
def test_logits_there_and_back_again(tmp_path, name):
    theirs = torch_model(name)
    theirs.save_pretrained(tmp_path / "torch")
    model, params, report = load(tmp_path / "torch")
    expected, count = logits_of(theirs, batch()), batch()["decoder_attention_mask"] > 0
    assert np.abs(expected).max() > 1
    ours = np.asarray(jax.jit(model.apply)(params, batch()))
    np.testing.assert_allclose(ours[count], expected[count], atol=2e-4, rtol=0)
    changed = jax.tree.map(lambda leaf: leaf * 1.01, params)
    for saved, weights in (("same", params), ("changed", changed)):
        folder = save(tmp_path / saved, model, weights, report=report)
        again, info = type(theirs).from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        same = np.asarray(jax.jit(model.apply)(weights, batch()))
        np.testing.assert_allclose(
            same[count], logits_of(again.eval(), batch())[count], atol=2e-4, rtol=0
        )
    assert (tmp_path / "same" / "generation_config.json").is_file()


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_loss_and_gradients_of_a_ragged_batch(tmp_path, name):
    theirs = torch_model(name)
    theirs.save_pretrained(tmp_path)
    model, params, _ = load(tmp_path)
    arrays = batch()
    labels = np.where(arrays["decoder_attention_mask"], arrays["decoder_input_ids"], -100)
    pad = theirs.config.pad_token_id
    arrays = {name: arrays[name] for name in ("input_ids", "attention_mask")}
    logits = theirs(**tensors(arrays), labels=torch.from_numpy(labels).long()).logits
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(labels).long().flatten(), label_smoothing=0.1
    )
    expected.backward()

    def loss(params):
        targets = shift_right(jnp.asarray(labels), model.decoder_start_token_id, pad)
        likely = jax.nn.log_softmax(model.apply(params, {**arrays, "decoder_input_ids": targets}))
        one = jnp.take_along_axis(likely, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
        counts = labels >= 0
        return -jnp.sum(jnp.where(counts, 0.9 * one + 0.1 * likely.mean(-1), 0)) / counts.sum()

    ours, gradients = jax.jit(jax.value_and_grad(loss))(params)
    assert float(ours) == pytest.approx(expected.item(), abs=2e-5)
    named = dict(theirs.named_parameters())
    for path, gradient in flatten(gradients).items():
        spot = place(SEQ2SEQ[model.family], path)
        if spot.tensor in named:  # torch does not train final_logits_bias
            there = named[spot.tensor].grad.numpy()
            np.testing.assert_allclose(spot.theirs(np.asarray(gradient)), there, atol=2e-4)


GENERATION = [
    ("t5-1.1", {}),
    ("t5-1.1", {"num_beams": 4}),
    ("t5-1.1", {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0,
                "no_repeat_ngram_size": 2, "min_new_tokens": 5}),
    ("t5-1.1", {"num_beams": 3, "early_stopping": "never", "length_penalty": 0.5,
                "eos_token_id": [1, 5, 9]}),
    ("t5-1.1", {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_length": 4,
                "forced_bos_token_id": 7, "forced_eos_token_id": 1, "bad_words_ids": [[4]]}),
    ("bart", {"num_beams": 4, "forced_bos_token_id": 3}),
    ("marian", {"num_beams": 2}),
    ("pegasus", {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "asked"), GENERATION, ids=lambda x: x if isinstance(x, str) else ""
)
def test_generated_tokens(tmp_path, name, asked):
    theirs = torch_model(name, scale=0.3)
    theirs.save_pretrained(tmp_path)
    model, params, _ = load(tmp_path)
    fields = json.loads((tmp_path / "generation_config.json").read_text())
    settings = settings_of(fields | asked, max_new_tokens=12)
    arrays = {name: batch(9)[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        whole = theirs.generate(**tensors(arrays), do_sample=False, max_new_tokens=12, **asked)
    out = compile_generate(model.decoder, settings)(params, arrays)
    for row, length, expected in zip(out.tokens, out.lengths, whole[:, 1:].tolist(), strict=True):
        ends = [i for i, token in enumerate(expected) if token in settings.eos_token_id]
        expected = expected[: ends[0] + 1] if ends else expected
        assert row[: int(length)].tolist() == expected


TEXTS = (
    "Translate English to German: The house is wonderful.",
    "Translate English to French: I have two brothers and a sister.",
    "What is the capital of Germany?",
    "Is this review positive or negative? I would not watch this film again.",
    "summarize: The committee met on Monday to discuss the budget for the coming year. After four "
    "hours it had agreed on nothing but the date of the next meeting.",
    "summarize: A storm brought down trees across the north of the county last night, and about "
    "two thousand homes were without power this morning.",
    "Write a title: user asks how to sort a list of dictionaries by two keys in Python",
    "Write a title: the build fails on the second machine because a header file is missing",
)


@pytest.mark.assets
@pytest.mark.parametrize("beams", [1, 4])
def test_the_real_model_computes_and_writes_the_same(flan_t5, beams):
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(flan_t5).eval()
    model, params, report = load(flan_t5)
    assert report.new == ()
    encoded = [one.ids for one in load_tokenizer(flan_t5).encode(TEXTS)]
    ids, mask = np.zeros((2, len(TEXTS), 48), np.int32)
    for row, one in enumerate(encoded):
        ids[row, : len(one)], mask[row, : len(one)] = one, 1
    arrays = {"input_ids": ids, "attention_mask": mask}
    if beams == 1:
        targets = {"decoder_input_ids": np.concatenate([0 * ids[:, :1], ids[:, :7]], 1)}
        ours = np.asarray(jax.jit(model.apply)(params, arrays | targets))
        assert np.abs(ours - logits_of(theirs, arrays | targets)).max() <= 2e-4
    settings = read_settings(flan_t5, num_beams=beams, max_new_tokens=16)
    out = compile_generate(model.decoder, settings)(params, arrays)
    with torch.no_grad():
        whole = theirs.generate(
            **tensors(arrays), num_beams=beams, max_new_tokens=16, do_sample=False
        )
    for row, length, expected in zip(out.tokens, out.lengths, whole[:, 1:].tolist(), strict=True):
        assert row[: int(length)].tolist() == expected[: int(length)]
        assert set(expected[int(length) :]) <= {0, 1}
