"""What was not touched comes back byte for byte, and what was saved is what is loaded."""

import json

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sftjax.core import flatten, map_with_path
from sftjax.hub import TensorFile, load, save
from sftjax.models import Head

FAMILIES = ["bert", "roberta", "xlm-roberta", "distilbert"]
KINDS = ["Model", "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"]


def stored(folder):
    return dict(TensorFile(folder / "model.safetensors"))


def same_bytes(one, other):
    return one.keys() == other.keys() and all(
        (one[n].dtype, one[n].shape, one[n].tobytes())
        == (other[n].dtype, other[n].shape, other[n].tobytes())
        for n in one
    )


def config_at(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_unchanged_model_comes_back_byte_for_byte(tmp_path, checkpoint, family, kind):
    tensors = checkpoint(tmp_path / "a", family, kind)
    model, params, report = load(tmp_path / "a")
    save(tmp_path / "b", model, params, report=report)
    assert same_bytes(stored(tmp_path / "b"), tensors)
    before, after = config_at(tmp_path / "a"), config_at(tmp_path / "b")
    assert after == before | ({"problem_type": model.head.problem_type} if "Seq" in kind else {})


@pytest.mark.parametrize(
    ("dtype", "param_dtype"),
    [
        (stored, kept)
        for stored in ("float16", "bfloat16", "float64", "float32")
        for kept in (None, "float32", "bfloat16")
        if (stored, kept) != ("float64", None)  # jax has no float64 here
    ],
)
def test_dtypes_come_back_whatever_the_params_were_kept_in(
    tmp_path, checkpoint, dtype, param_dtype
):
    tensors = checkpoint(tmp_path / "a", dtype=jnp.dtype(dtype), settings={"torch_dtype": dtype})
    model, params, report = load(tmp_path / "a", param_dtype=param_dtype)
    save(tmp_path / "b", model, params, report=report)
    assert same_bytes(stored(tmp_path / "b"), tensors)
    assert config_at(tmp_path / "b")["torch_dtype"] == dtype


def test_a_moved_leaf_keeps_all_its_digits_and_leaves_the_others_alone(tmp_path, checkpoint):
    tensors = checkpoint(tmp_path / "a", dtype=np.float16, settings={"torch_dtype": "float16"})
    model, params, report = load(tmp_path / "a")
    moved = "bert/encoder/layer/1/output/dense/kernel"
    params = map_with_path(lambda path, leaf: leaf + 1e-6 if path == moved else leaf, params)
    save(tmp_path / "b", model, params, report=report)
    after = stored(tmp_path / "b")
    name = "encoder.layer.1.output.dense.weight"
    assert after[name].dtype == np.float32
    assert np.array_equal(after[name].T, flatten(params)[moved])
    assert same_bytes(after | {name: tensors[name]}, tensors)
    assert config_at(tmp_path / "b")["torch_dtype"] == "float32"


def test_a_moved_leaf_that_fits_the_files_dtype_is_written_in_it(tmp_path, checkpoint):
    checkpoint(tmp_path / "a", dtype=np.float16)
    model, params, report = load(tmp_path / "a")
    params = jax.tree.map(jnp.ones_like, params)
    save(tmp_path / "b", model, params, report=report)
    trunk = {n: t for n, t in stored(tmp_path / "b").items() if not n.startswith("pooler")}
    assert all(t.dtype == np.float16 and (t == 1).all() for t in trunk.values())


def test_zero_and_minus_zero_are_not_the_same(tmp_path, checkpoint):
    name = "embeddings.LayerNorm.bias"
    checkpoint(tmp_path / "a", extra={name: np.full(8, -0.0, np.float32)})
    model, params, report = load(tmp_path / "a")
    params["bert"]["embeddings"]["LayerNorm"]["bias"] = jnp.zeros(8)
    save(tmp_path / "b", model, params, report=report)
    assert not np.signbit(stored(tmp_path / "b")[name]).any()


def test_ties_buffers_old_names_and_other_heads_come_back(tmp_path, checkpoint):
    plain = checkpoint(tmp_path / "a", "bert", "ForMaskedLM")
    old = "bert.embeddings.LayerNorm."
    extra = {
        "cls.predictions.decoder.weight": plain["bert.embeddings.word_embeddings.weight"].copy(),
        "cls.predictions.decoder.bias": plain["cls.predictions.bias"].copy(),
        "cls.seq_relationship.weight": np.ones((2, 8), np.float32),
        "bert.embeddings.position_ids": np.arange(12)[None],
        f"{old}gamma": plain[f"{old}weight"],
        f"{old}beta": plain[f"{old}bias"],
    }
    without = (f"{old}weight", f"{old}bias")
    tensors = checkpoint(tmp_path / "a", "bert", "ForMaskedLM", extra=extra, without=without)
    model, params, report = load(tmp_path / "a")
    save(tmp_path / "b", model, params, report=report)
    assert same_bytes(stored(tmp_path / "b"), tensors)

    params["bert"]["embeddings"]["word_embeddings"]["embedding"] += 1
    save(tmp_path / "c", model, params, report=report)
    after = stored(tmp_path / "c")
    table = after["bert.embeddings.word_embeddings.weight"]
    assert np.array_equal(table, plain["bert.embeddings.word_embeddings.weight"] + 1)
    assert np.array_equal(after["cls.predictions.decoder.weight"], table)


def test_an_untied_decoder_is_saved_with_the_bias_torch_computes_with(tmp_path, checkpoint):
    plain = checkpoint(tmp_path / "a", "roberta", "ForMaskedLM")
    extra = {
        "lm_head.decoder.weight": plain["roberta.embeddings.word_embeddings.weight"] * 2,
        "lm_head.decoder.bias": plain["lm_head.bias"] + 1,
    }
    settings = {"tie_word_embeddings": False}
    tensors = checkpoint(tmp_path / "a", "roberta", "ForMaskedLM", extra=extra, settings=settings)
    model, params, report = load(tmp_path / "a")
    save(tmp_path / "b", model, params, report=report)
    assert same_bytes(stored(tmp_path / "b"), tensors)
    save(tmp_path / "c", model, params)
    assert np.array_equal(
        stored(tmp_path / "c")["lm_head.decoder.bias"], extra["lm_head.decoder.bias"]
    )


@pytest.mark.parametrize(
    ("family", "head"),
    [
        (family, head)
        for family in FAMILIES
        for head in ("sequence", "token", "masked-lm", "pooled", "mean", "hidden")
        if (family, head) != ("distilbert", "pooled")  # it has no pooler
    ],
)
def test_loading_what_was_saved_is_the_identity(tmp_path, checkpoint, family, head):
    checkpoint(tmp_path / "a", family)
    labels = ("bad", "good") if head in ("sequence", "token") else ()
    model, params, report = load(tmp_path / "a", head=head, labels=labels)
    for target, origin in (("b", report), ("c", None)):
        save(tmp_path / target, model, params, report=origin)
        again = load(tmp_path / target)
        assert again.report.new == ()
        assert again.model.head == model.head
        one, other = flatten(again.params), flatten(params)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[path], other[path]) for path in one)


def test_a_head_on_a_bare_encoder_takes_the_trunks_prefix(tmp_path, checkpoint):
    tensors = checkpoint(tmp_path / "a", extra={"embeddings.position_ids": np.arange(12)[None]})
    model, params, report = load(tmp_path / "a", head="sequence", labels=("bad", "good"))
    save(tmp_path / "b", model, params, report=report)
    expected = {f"bert.{name}" for name in tensors} | {"classifier.weight", "classifier.bias"}
    assert stored(tmp_path / "b").keys() == expected
    config = config_at(tmp_path / "b")
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert config["field_of_the_future"] == {"kept": True}


def test_a_replaced_last_layer_is_not_shadowed_by_the_old_one(tmp_path, checkpoint):
    checkpoint(tmp_path / "a", "bert", "ForSequenceClassification", labels=3)
    model, params, report = load(tmp_path / "a", labels=("x", "y"))
    save(tmp_path / "b", model, params, report=report)
    assert stored(tmp_path / "b")["classifier.weight"].shape == (2, 8)
    assert load(tmp_path / "b").model.head.labels == ("x", "y")


def test_an_old_flax_checkpoint_is_saved_with_the_hubs_names(tmp_path, checkpoint):
    tensors = checkpoint(tmp_path / "a")
    params = load(tmp_path / "a", head="pooled").params
    (tmp_path / "a" / "model.safetensors").unlink()
    tree = jax.tree.map(np.asarray, params["bert"])
    (tmp_path / "a" / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    model, params, report = load(tmp_path / "a", head="mean")
    assert report.unused == ("pooler/dense/bias", "pooler/dense/kernel")
    save(tmp_path / "b", model, params, report=report)
    assert same_bytes(stored(tmp_path / "b"), tensors)


@pytest.mark.parametrize("size", [300, 5000])
def test_shards_come_back_whole(tmp_path, checkpoint, size):
    checkpoint(tmp_path / "a")
    model, params, report = load(tmp_path / "a")
    save(tmp_path / "b", model, params, report=report, max_shard_size=size)
    again = load(tmp_path / "b")
    assert len(again.report.weights.files) > 1
    assert all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(again.params), jax.tree.leaves(params), strict=True)
    )


def test_saving_over_the_source(tmp_path, checkpoint):
    tensors = checkpoint(tmp_path)
    model, params, report = load(tmp_path)
    params["bert"]["embeddings"]["LayerNorm"]["bias"] += 1
    for _ in range(2):
        save(tmp_path, model, params, report=report)
        after = stored(tmp_path)
        assert np.array_equal(
            after["embeddings.LayerNorm.bias"], tensors["embeddings.LayerNorm.bias"] + 1
        )
        assert same_bytes(
            after | {"embeddings.LayerNorm.bias": tensors["embeddings.LayerNorm.bias"]}, tensors
        )
        assert (tmp_path / "vocab.txt").read_text() == "[PAD]\n"


def test_the_tokenizer_is_copied_byte_for_byte(tmp_path, checkpoint):
    checkpoint(tmp_path / "a")
    files = {"vocab.txt": b"\xff\r\n", "tokenizer.json": b'{"a" : 1}', "merges.txt": b"x y"}
    for name, data in files.items():
        (tmp_path / "a" / name).write_bytes(data)
    model, params, report = load(tmp_path / "a")
    assert report.tokenizer_files == ("tokenizer.json", "vocab.txt", "merges.txt")
    save(tmp_path / "b", model, params, report=report)
    save(tmp_path / "c", model, params, tokenizer_from=tmp_path / "a")
    for folder in ("b", "c"):
        assert {n: (tmp_path / folder / n).read_bytes() for n in files} == files
    with pytest.raises(ValueError, match="no tokenizer files to copy"):
        save(tmp_path / "d", model, params, tokenizer_from=tmp_path)
    assert not (tmp_path / "d").exists()


def test_the_card_comes_from_the_report_unless_given(tmp_path, checkpoint):
    checkpoint(tmp_path / "a")
    (tmp_path / "a" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A\n")
    model, params, report = load(tmp_path / "a", head="sequence", labels=("bad", "good"))
    save(tmp_path / "b", model, params, report=report)
    text = (tmp_path / "b" / "README.md").read_text()
    assert 'license: "apache-2.0"' in text
    assert "classifier/kernel" in text
    assert str(tmp_path) not in text
    save(tmp_path / "b", model, params, report=report, card="# Mine\n")
    assert (tmp_path / "b" / "README.md").read_text() == "# Mine\n"


def test_half_a_model_is_refused_and_nothing_is_written(tmp_path, checkpoint):
    checkpoint(tmp_path / "a")
    model, params, _ = load(tmp_path / "a", head=Head("sequence", ("bad", "good")))
    half = {"bert": params["bert"], "lora": {"a": jnp.zeros(2)}}
    with pytest.raises(ValueError, match=r"2 leaves absent .classifier.*1 too many .lora/a"):
        save(tmp_path / "b", model, half)
    params["classifier"]["bias"] = jnp.zeros(3)
    with pytest.raises(ValueError, match=r"1 of another shape .classifier/bias"):
        save(tmp_path / "b", model, params)
    assert not (tmp_path / "b").exists()
