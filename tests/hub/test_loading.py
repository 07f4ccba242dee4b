"""Every tensor of a file is loaded, tied, kept, reported or refused; none is lost in silence."""

import json
import subprocess
import sys

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sftjax.core import flatten
from sftjax.hub import WEIGHT_MAPS, load
from sftjax.hub.names import place
from sftjax.hub.weights import write_weights
from sftjax.models import Head, build

FAMILIES = ["bert", "roberta", "xlm-roberta", "distilbert"]
KINDS = ["Model", "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"]
HEADS = dict(zip(KINDS, ["hidden", "sequence", "token", "masked-lm"], strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_values_arrive_where_they_belong(tmp_path, checkpoint, family, kind):
    tensors = checkpoint(tmp_path, family, kind)
    model, params, report = load(tmp_path)
    leaves = flatten(params)
    assert (model.family, model.head.kind) == (family, HEADS[kind])
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, model.shapes())
    assert report.names.keys() == leaves.keys()
    assert {*report.names.values(), *report.unused} == tensors.keys()
    assert all(name.startswith("pooler.") for name in report.unused)
    for path, leaf in leaves.items():
        tensor = tensors[report.names[path]]
        # The one rule behind the tables: same words, `kernel` is the transposed `weight`.
        module, _, kindly = path.rpartition("/")
        word = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(kindly, kindly)
        assert f"{module}.{word}".replace("/", ".").endswith(report.names[path])
        expected = tensor.T if kindly == "kernel" else tensor
        assert leaf.dtype == jnp.float32
        assert np.array_equal(leaf, expected)


def test_new_leaves_are_named_and_follow_the_key(tmp_path, checkpoint):
    checkpoint(tmp_path)
    labels = ("bad", "good")
    _, params, report = load(tmp_path, head="sequence", labels=labels)
    assert report.new == ("classifier/bias", "classifier/kernel")
    assert set(report.names) | set(report.new) == flatten(params).keys()
    again = load(tmp_path, head=Head("sequence", labels), key=jax.random.key(0)).params
    other = load(tmp_path, head="sequence", labels=labels, key=jax.random.key(1)).params
    kernels = [np.asarray(p["classifier"]["kernel"]) for p in (params, again, other)]
    assert np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    assert 0 < np.abs(kernels[0]).max() < 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_head_on_another_heads_checkpoint(tmp_path, checkpoint, family):
    checkpoint(tmp_path, family, "ForMaskedLM")
    _, params, report = load(tmp_path, head="sequence", labels=("a", "b"))
    assert flatten(params).keys() == {*report.names, *report.new}
    stem = "roberta" if "roberta" in family else family
    assert all(not path.startswith(stem) or "/pooler/" in path for path in report.new)
    assert report.unused
    assert not any(name.startswith(stem) for name in report.unused)


def test_labels_decide_whether_the_last_layer_is_kept(tmp_path, checkpoint):
    checkpoint(tmp_path, "roberta", "ForSequenceClassification", labels=2)

    def new(**asked):
        return load(tmp_path, **asked).report.new

    out = ("classifier/out_proj/bias", "classifier/out_proj/kernel")
    assert new() == ()
    assert new(labels=("class 0", "class 1")) == ()
    assert new(labels=("class 1", "class 0")) == out
    assert new(labels=("a", "b", "c")) == out
    assert new(head=Head("sequence", ("a",), "regression")) == out
    assert new(head="token", labels=("a", "b")) == ("classifier/bias", "classifier/kernel")


def test_placeholder_labels_are_given_names(tmp_path, checkpoint):
    kind = "ForSequenceClassification"
    settings = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    checkpoint(tmp_path, "bert", kind, labels=2, settings=settings)
    model, _, report = load(tmp_path, labels=("bad", "good"))
    assert (model.head.labels, report.new) == (("bad", "good"), ())


def test_a_name_that_several_heads_share_is_not_taken_for_another(tmp_path, checkpoint):
    checkpoint(tmp_path, "bert", "ForTokenClassification", labels=2)
    report = load(tmp_path, head="sequence", labels=("class 0", "class 1")).report
    assert {"classifier/kernel", "bert/pooler/dense/kernel"} <= set(report.new)
    assert {"classifier.weight", "classifier.bias"} == set(report.unused)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_params_are_float32_unless_asked(tmp_path, checkpoint, dtype):
    tensors = checkpoint(tmp_path, dtype=jnp.dtype(dtype))
    _, params, report = load(tmp_path)
    name = "bert/embeddings/word_embeddings/embedding"
    assert set(report.dtypes.values()) == {dtype}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    expected = tensors["embeddings.word_embeddings.weight"].astype(np.float32)
    assert np.array_equal(flatten(params)[name], expected)
    if dtype != "float64":
        kept = load(tmp_path, param_dtype=None).params
        assert {leaf.dtype.name for leaf in jax.tree.leaves(kept)} == {dtype}


def test_params_do_not_alias_the_file(tmp_path, checkpoint):
    checkpoint(tmp_path)
    _, params, _ = load(tmp_path)
    before = jax.tree.map(np.array, params)
    zero = jax.jit(lambda p: jax.tree.map(lambda x: x * 0, p), donate_argnums=0)
    jax.block_until_ready(zero(params))
    for got, expected in zip(
        jax.tree.leaves(load(tmp_path).params), jax.tree.leaves(before), strict=True
    ):
        assert np.array_equal(got, expected)


def test_names_from_before_2019(tmp_path, checkpoint):
    tensors = checkpoint(tmp_path)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    expected = load(tmp_path).params
    save_file(old, tmp_path / "model.safetensors")
    assert trees_equal(load(tmp_path).params, expected)


def test_shards_are_one_checkpoint(tmp_path, checkpoint):
    tensors = checkpoint(tmp_path)
    whole = load(tmp_path)
    write_weights(tmp_path, tensors, 1000)
    sharded = load(tmp_path)
    assert trees_equal(sharded.params, whole.params)
    assert sharded.report.format == "sharded safetensors"
    assert len(sharded.report.weights.files) > 1
    assert sharded.report.sha256 != whole.report.sha256


@pytest.mark.parametrize("bare", [True, False])
def test_an_old_flax_checkpoint_loads_as_it_is(tmp_path, checkpoint, bare):
    checkpoint(tmp_path)
    expected = load(tmp_path, head="pooled").params
    (tmp_path / "model.safetensors").unlink()
    tree = jax.tree.map(np.asarray, expected)
    data = flax.serialization.to_bytes(tree["bert"] if bare else tree)
    (tmp_path / "flax_model.msgpack").write_bytes(data)
    _, params, report = load(tmp_path, head="pooled")
    assert trees_equal(params, expected)
    assert report.format == "msgpack"


def tied_copies(tensors):
    return {
        "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].copy(),
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].copy(),
    }


def test_ties_that_agree_are_remembered(tmp_path, checkpoint):
    copies = tied_copies(checkpoint(tmp_path, "bert", "ForMaskedLM"))
    checkpoint(tmp_path, "bert", "ForMaskedLM", extra=copies)
    report = load(tmp_path).report
    assert set(report.aliases) == copies.keys()
    assert report.unused == ()
    assert set(load(tmp_path, head="mean").report.unused) > copies.keys()


def test_ties_that_differ_are_refused(tmp_path, checkpoint):
    copies = tied_copies(checkpoint(tmp_path, "bert", "ForMaskedLM"))
    copies["cls.predictions.decoder.weight"][0, 0] += 1
    checkpoint(tmp_path, "bert", "ForMaskedLM", extra=copies)
    with pytest.raises(ValueError, match=r"decoder\.weight and .*tie_word_embeddings"):
        load(tmp_path)


def test_an_untied_decoder_is_a_leaf_of_its_own(tmp_path, checkpoint):
    copies = tied_copies(checkpoint(tmp_path, "bert", "ForMaskedLM"))
    copies["cls.predictions.decoder.weight"] *= 2
    copies["cls.predictions.decoder.bias"] += 1
    settings = {"tie_word_embeddings": False}
    checkpoint(tmp_path, "bert", "ForMaskedLM", extra=copies, settings=settings)
    _, params, report = load(tmp_path)
    predictions = params["cls"]["predictions"]
    weight = copies["cls.predictions.decoder.weight"]
    assert np.array_equal(predictions["decoder"]["kernel"], weight.T)
    assert np.array_equal(predictions["bias"], copies["cls.predictions.decoder.bias"])
    assert report.unused == ("cls.predictions.bias",)


def test_buffers_and_other_heads_are_reported(tmp_path, checkpoint):
    extra = {
        "bert.embeddings.position_ids": np.arange(12)[None],
        "cls.seq_relationship.weight": np.zeros((2, 8), np.float32),
    }
    checkpoint(tmp_path, "bert", "ForMaskedLM", extra=extra)
    report = load(tmp_path).report
    assert report.buffers == ("bert.embeddings.position_ids",)
    assert report.unused == ("cls.seq_relationship.weight",)


def test_every_fault_is_in_one_message(tmp_path, checkpoint):
    checkpoint(
        tmp_path,
        "bert",
        "ForSequenceClassification",
        without=("bert.encoder.layer.1.output.dense.bias",),
        extra={
            "bert.pooler.dense.weight": np.zeros((3, 4), np.float32),
            "bert.embeddings.LayerNorm.weight": np.zeros(8, np.int8),
            "surprise.weight": np.zeros(2, np.float32),
        },
    )
    with pytest.raises(ValueError) as error:
        load(tmp_path)
    text = str(error.value)
    for part in (
        str(tmp_path),
        "model.safetensors",
        "'sequence' head",
        "1 missing (bert/encoder/layer/1/output/dense/bias)",
        "1 unexpected (surprise.weight)",
        "ignore=['surprise.weight', ...]",
        "1 misshapen (bert.pooler.dense.weight is (3, 4) and should be (8, 8))",
        "1 quantized (bert.embeddings.LayerNorm.weight is int8)",
    ):
        assert part in text
    assert "\n" not in text


def test_a_missing_tensor(tmp_path, checkpoint):
    checkpoint(tmp_path, without=("embeddings.LayerNorm.bias",))
    with pytest.raises(ValueError, match=r"1 missing .*LayerNorm/bias.*incomplete"):
        load(tmp_path)


def test_a_head_that_should_be_there_is_not_made_up(tmp_path, checkpoint):
    checkpoint(tmp_path, "bert", "ForSequenceClassification", without=("classifier.bias",))
    with pytest.raises(ValueError, match=r"1 missing .classifier/bias"):
        load(tmp_path)


def test_a_pooler_is_not_made_up_for_embeddings(tmp_path, checkpoint):
    checkpoint(tmp_path, "bert", "ForMaskedLM")
    with pytest.raises(ValueError, match=r"2 missing .bert/pooler"):
        load(tmp_path, head="pooled")


def test_another_number_of_classes_than_the_config_says(tmp_path, checkpoint):
    settings = {"id2label": {"0": "a", "1": "b"}}
    checkpoint(tmp_path, "bert", "ForSequenceClassification", labels=3, settings=settings)
    with pytest.raises(ValueError, match=r"2 misshapen .*pass head and labels"):
        load(tmp_path)
    assert load(tmp_path, labels=("x", "y")).report.new == ("classifier/bias", "classifier/kernel")


@pytest.mark.parametrize("pattern", ["surprise.weight", "surprise", "surprise/*", "*/weight"])
def test_an_unexpected_tensor_is_refused_unless_allowed(tmp_path, checkpoint, pattern):
    checkpoint(tmp_path, extra={"surprise.weight": np.zeros(2)})
    with pytest.raises(ValueError, match=r"1 unexpected .surprise\.weight.*pass ignore="):
        load(tmp_path, ignore=["surprised"])
    assert load(tmp_path, ignore=[pattern]).report.ignored == ("surprise.weight",)


def test_a_truncated_file(tmp_path, checkpoint):
    checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors .*tensor .*cut short.*again"):
        load(tmp_path)


def test_an_unknown_architecture(tmp_path, checkpoint):
    checkpoint(tmp_path, settings={"model_type": "mamba"})
    with pytest.raises(ValueError, match=r"json says model_type 'mamba'.*Known: bart, bert, "):
        load(tmp_path)


def test_no_weights(tmp_path, checkpoint):
    checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights.*config\.json"):
        load(tmp_path)


def test_a_file_instead_of_its_folder(tmp_path, checkpoint):
    checkpoint(tmp_path)
    file, folder = load(tmp_path / "model.safetensors"), load(tmp_path)
    assert trees_equal(file.params, folder.params)
    assert file.report.folder == tmp_path


def test_the_report_is_one_paragraph_and_plain_json(tmp_path, checkpoint):
    checkpoint(tmp_path)
    report = load(tmp_path, head="sequence", labels=("a", "b")).report
    text = str(report)
    assert "2 new (classifier/bias, classifier/kernel)" in text
    assert "\n" not in text
    facts = json.loads(json.dumps(report.facts()))
    assert facts["new"] == list(report.new)
    assert len(facts["sha256"]) == 64


MEMORY = """
import json, pathlib, re, sys
import jax
from sftjax.hub import load

folder = pathlib.Path(sys.argv[1])
load(folder / "small")  # imports and first compilations are not the checkpoint's memory
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

start = peak()
params = load(folder / "large").params
jax.block_until_ready(params)
print(json.dumps([(peak() - start) * 1024, sum(x.nbytes for x in jax.tree.leaves(params))]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_loading_never_holds_the_weights_twice(tmp_path):
    for name, width, layers in (("small", 8, 1), ("large", 1024, 5)):
        _write_bert(tmp_path / name, width, layers)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True
    )
    grown, size = json.loads(done.stdout)
    assert size > 200e6
    assert 0.9 * size < grown < 1.3 * size


def _write_bert(folder, width, layers):
    folder.mkdir()
    config = {
        "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 100,
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2,
        "intermediate_size": 4 * width, "max_position_embeddings": 16, "type_vocab_size": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for path, leaf in flatten(build(config, Head("hidden")).shapes()).items():
        spot = place(WEIGHT_MAPS["bert"], path)
        tensors[spot.tensor] = np.ones(spot.their_shape(leaf.shape), np.float32)
    save_file(tensors, folder / "model.safetensors")


def trees_equal(one, other):
    one, other = flatten(one), flatten(other)
    return one.keys() == other.keys() and all(np.array_equal(one[p], other[p]) for p in one)
