"""The card's front matter is YAML the Hub reads, and its text says every fact it was given."""

import pathlib

import pytest

from sftjax.hub import Card, Data, Metric, card_of, render

CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "bad", "1": "good"},
}
CARD = Card(
    title="Reviews: good or bad?",
    base_model="owner/model",
    license="apache-2.0",
    tags=("sentiment", "jax"),
    data=(Data("reviews", 23700, "train", "split by document | deduplicated"),),
    metrics=(
        Metric("accuracy", 0.8125, 0.79, 0.83),
        Metric("mcc", 0.5, on="tweets"),
        Metric("accuracy", 0.7, on="tweets"),
    ),
    trained="last 2 blocks",
    frozen="embeddings, blocks 0 to 3",
    anchored="L2-SP, dose 1.0",
    new=("classifier/kernel",),
    settings={"learning_rate": 2e-5},
    notes="Not for names.",
)


def front_matter(text):
    yaml = pytest.importorskip("yaml")
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter_is_what_the_hub_expects():
    assert front_matter(render(CARD, CONFIG)) == {
        "base_model": "owner/model",
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-classification",
        "tags": ["sentiment", "jax", "sftjax"],
        "metrics": ["accuracy", "mcc"],
    }


def test_every_fact_is_in_the_text():
    text = render(CARD, CONFIG)
    for fact in (
        "# Reviews: good or bad?",
        "0 = bad, 1 = good",
        "| reviews | 23,700 | train | split by document \\| deduplicated |",
        "| test | accuracy | 0.8125 | 0.79 to 0.83 |",
        "| tweets | mcc | 0.5 |  |",
        "Trained: last 2 blocks",
        "Frozen: embeddings, blocks 0 to 3",
        "Anchored: L2-SP, dose 1.0",
        "New, without a pretrained value: classifier/kernel",
        "| learning_rate | `2e-05` |",
        "Not for names.",
        "AutoModelForSequenceClassification.from_pretrained(FOLDER)",
        "load(FOLDER)",
        "jax ",
    ):
        assert fact in text


def test_a_model_of_masks_is_not_promised_to_transformers():
    config = {**CONFIG, "model_type": "resnet", "architectures": ["ResNetForSemanticSegmentation"]}
    text = render(CARD, config)
    assert front_matter(text)["pipeline_tag"] == "image-segmentation"
    assert "from transformers" not in text
    assert "model, params, report = load(FOLDER)" in text


def test_an_empty_card_claims_nothing():
    text = render(card_of(None), {"model_type": "bert", "architectures": ["BertModel"]})
    assert front_matter(text).keys() == {"library_name", "tags"}
    for heading in ("## Data", "## Metrics", "## Training"):
        assert heading not in text


def test_a_local_name_is_not_given_to_the_hub_as_one_of_its_own():
    text = render(Card(base_model=str(pathlib.Path("/models/mine"))), CONFIG)
    assert "base_model" not in front_matter(text)
