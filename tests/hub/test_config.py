"""The config says which head a checkpoint holds, and nothing it says is lost."""

import json

import pytest

from sftjax.hub.config import choose_head, class_name, describe, read_config, stored_labels
from sftjax.models import Head
from sftjax.models.head import ENCODER_KINDS

BASE = {"model_type": "bert", "architectures": ["BertModel"]}
REVIEWS = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"1": "good", "0": "bad"},
    "problem_type": "single_label_classification",
    "my_field": {"kept": [1, None]},
}


@pytest.mark.parametrize(
    ("config", "asked", "expected"),
    [
        (BASE, {}, Head("hidden")),
        ({"model_type": "bert"}, {}, Head("hidden")),
        (BASE, {"head": "mean"}, Head("mean")),
        (BASE, {"head": Head("token", ("O", "PER"))}, Head("token", ("O", "PER"))),
        (REVIEWS, {}, Head("sequence", ("bad", "good"))),
        (REVIEWS, {"labels": ("a", "b", "c")}, Head("sequence", ("a", "b", "c"))),
        (REVIEWS, {"head": "masked-lm"}, Head("masked-lm")),
        (BASE, {"head": "sequence", "labels": ["x"]}, Head("sequence", ("x",), "regression")),
        (
            BASE,
            {"head": "sequence", "labels": "ab", "problem_type": "multi_label_classification"},
            Head("sequence", ("a", "b"), "multi_label_classification"),
        ),
        ({"architectures": ["BertForPreTraining"]}, {}, Head("masked-lm")),
        ({"architectures": ["BertForQuestionAnswering"]}, {}, Head("hidden")),
        ({**BASE, "sftjax_head": "pooled"}, {}, Head("pooled")),
        (
            {"architectures": ["RobertaForTokenClassification"]},
            {},
            Head("token", ("LABEL_0", "LABEL_1")),
        ),
    ],
)
def test_the_head_is_what_was_asked_else_what_was_stored(config, asked, expected):
    assert choose_head(config, **asked) == expected


@pytest.mark.parametrize(
    ("config", "asked", "reason"),
    [
        (BASE, {"head": "sequence"}, "no 'sequence' head .saved as BertModel|pass its class names"),
        ({"model_type": "bert"}, {"head": "token"}, "a bare encoder"),
        (REVIEWS, {"head": "token"}, "no 'token' head"),
        (BASE, {"head": "classifier"}, "'classifier' is not known"),
        (BASE, {"labels": ("a", "b")}, 'pass head="sequence"'),
        (BASE, {"head": Head("mean"), "labels": ("a", "b")}, "beside a Head"),
        ({**REVIEWS, "id2label": {"0": "a", "2": "b"}}, {}, "without gaps"),
        ({**REVIEWS, "id2label": {"zero": "a"}}, {}, "without gaps"),
        ({**REVIEWS, "id2label": ["a", "b"]}, {}, "without gaps"),
    ],
)
def test_what_cannot_be_decided_is_asked_back(config, asked, reason):
    with pytest.raises(ValueError, match=reason):
        choose_head(config, **asked)


@pytest.mark.parametrize("kind", ENCODER_KINDS)
@pytest.mark.parametrize("config", [BASE, REVIEWS], ids=["base", "reviews"])
def test_the_saved_config_gives_the_head_back(config, kind):
    labels = ("a", "b", "c") if kind in ("sequence", "token") else ()
    head = Head(kind, labels)
    saved = json.loads(json.dumps(describe(config, head, dtype="float32", mixed=False)))
    assert choose_head(saved) == head
    assert saved.get("my_field") == config.get("my_field")
    if labels:
        assert stored_labels(saved) == labels
        assert saved["label2id"] == {"a": 0, "b": 1, "c": 2}


def test_an_unchanged_head_leaves_the_config_as_it_was():
    assert describe(BASE, Head("hidden"), dtype="float32", mixed=False) == BASE
    again = describe(REVIEWS, Head("sequence", ("bad", "good")), dtype="float32", mixed=False)
    assert {name: again[name] for name in REVIEWS} == {
        **REVIEWS,
        "id2label": {"0": "bad", "1": "good"},
    }


def test_the_dtype_field_follows_the_saved_weights():
    def dtype_of(config, mixed):
        saved = describe(config, Head("hidden"), dtype="float32", mixed=mixed)
        return {name: saved[name] for name in ("torch_dtype", "dtype") if name in saved}

    assert dtype_of({**BASE, "torch_dtype": "float16"}, False) == {"torch_dtype": "float32"}
    assert dtype_of({**BASE, "dtype": "float16"}, True) == {"dtype": "float32"}
    assert dtype_of(BASE, True) == {"torch_dtype": "float32"}
    assert dtype_of(BASE, False) == {}


@pytest.mark.parametrize(
    ("config", "kind", "name"),
    [
        (BASE, "sequence", "BertForSequenceClassification"),
        ({"model_type": "distilbert"}, "token", "DistilBertForTokenClassification"),
        ({"model_type": "xlm-roberta"}, "mean", "XLMRobertaModel"),
        (
            {"model_type": "bert", "architectures": ["BertForPreTraining"]},
            "masked-lm",
            "BertForPreTraining",
        ),
    ],
)
def test_the_class_that_opens_the_folder(config, kind, name):
    assert class_name(config, kind) == name


def test_a_folder_without_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.json.*Copy it"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"model_type": ', r"config\.json is not valid JSON: .*line 1 column"),
        ("", r"config\.json is not valid JSON"),
        ("[1]", "holds a JSON list"),
        ('{"model_type": "t5"}', "model_type 't5'.*Known: bert, .*roberta, .*xlm-roberta"),
        ('{"hidden_size": 8}', "model_type None.*add it"),
        ('{"model_type": ["bert"]}', "model_type"),
    ],
)
def test_a_config_that_cannot_be_used(tmp_path, text, reason):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_config(tmp_path)
