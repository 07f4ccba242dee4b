"""transformers opens what we save, without a word, and computes the same."""

import jax
import numpy as np
import pytest

from sftjax.hub import TensorFile, load, save

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.torch

FAMILIES = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", {"type_vocab_size": 1}),
    "xlm-roberta": ("XLMRoberta", {"type_vocab_size": 1, "hidden_act": "relu"}),
    "distilbert": ("DistilBert", {}),
}
SIZES = {
    "vocab_size": 50,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 40,
}
DISTILBERT_SIZES = {
    "vocab_size": 50, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128,
    "max_position_embeddings": 40,
}  # fmt: skip
TASKS = {
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "masked-lm": "ForMaskedLM",
    "hidden": "Model",
}


def random_model(family, suffix, **settings):
    stem, extra = FAMILIES[family]
    sizes = DISTILBERT_SIZES if family == "distilbert" else SIZES | extra
    torch.manual_seed(0)
    config = getattr(transformers, f"{stem}Config")(**sizes, **settings)
    model = getattr(transformers, stem + suffix)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # zero biases and unit scales would hide a mix-up
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def open_in_torch(folder, suffix):
    auto = getattr(transformers, f"Auto{'' if suffix == 'Model' else 'Model'}{suffix}")
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def batch():
    rng = np.random.default_rng(0)
    mask = np.ones((3, 9), np.int32)
    mask[1, 5:] = 0
    ids = rng.integers(5, 50, (3, 9), np.int32)
    return {"input_ids": np.where(mask, ids, 1), "attention_mask": mask}


def outputs_of(model):
    tensors = {name: torch.from_numpy(array).long() for name, array in batch().items()}
    with torch.no_grad():
        return model(**tensors)[0].numpy()


def assert_computes_the_same(model, params, reference):
    ours = np.asarray(jax.jit(model.apply)(params, batch()))
    rows = batch()["attention_mask"].astype(bool) if ours.ndim == 3 else slice(None)
    assert ours.shape == reference.shape
    np.testing.assert_allclose(ours[rows], reference[rows], atol=2e-5, rtol=0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_again(tmp_path, family, task):
    reference = random_model(family, TASKS[task], num_labels=3)
    reference.save_pretrained(tmp_path / "torch")
    model, params, report = load(tmp_path / "torch")
    assert model.head.kind == task
    assert_computes_the_same(model, params, outputs_of(reference))

    save(tmp_path / "ours", model, params, report=report)
    again = open_in_torch(tmp_path / "ours", TASKS[task])
    assert np.array_equal(outputs_of(again), outputs_of(reference))
    before = TensorFile(tmp_path / "torch" / "model.safetensors")
    after = TensorFile(tmp_path / "ours" / "model.safetensors")
    assert before.keys() == after.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_head_opens_in_torch(tmp_path, family):
    random_model(family, "Model").save_pretrained(tmp_path / "torch")
    labels = ("bad", "so so", "good")
    model, params, report = load(tmp_path / "torch", head="sequence", labels=labels)
    params["classifier"] = jax.tree.map(lambda x: x + 0.3, params["classifier"])
    save(tmp_path / "ours", model, params, report=report)
    again = open_in_torch(tmp_path / "ours", "ForSequenceClassification")
    assert tuple(again.config.id2label.values()) == labels
    assert again.config.num_labels == 3
    assert again.config.problem_type == "single_label_classification"
    assert_computes_the_same(model, params, outputs_of(again))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untied_decoder_opens_in_torch(tmp_path, family):
    reference = random_model(family, "ForMaskedLM", tie_word_embeddings=False)
    reference.save_pretrained(tmp_path / "torch")
    model, params, report = load(tmp_path / "torch")
    assert_computes_the_same(model, params, outputs_of(reference))
    save(tmp_path / "ours", model, jax.tree.map(lambda x: x * 1.01, params), report=report)
    again = open_in_torch(tmp_path / "ours", "ForMaskedLM")
    changed = load(tmp_path / "ours").params
    assert_computes_the_same(model, changed, outputs_of(again))


def test_a_half_precision_checkpoint_that_was_trained_opens_in_full(tmp_path):
    reference = random_model("bert", "ForSequenceClassification", num_labels=2).half()
    reference.save_pretrained(tmp_path / "torch")
    model, params, report = load(tmp_path / "torch")
    params["classifier"]["kernel"] *= 1.001
    save(tmp_path / "ours", model, params, report=report)
    again = open_in_torch(tmp_path / "ours", "ForSequenceClassification")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert_computes_the_same(model, params, outputs_of(again))


def test_a_regression_head_opens_in_torch(tmp_path):
    random_model("bert", "Model").save_pretrained(tmp_path / "torch")
    model, params, report = load(tmp_path / "torch", head="sequence", labels=("stars",))
    save(tmp_path / "ours", model, params, report=report, max_shard_size=50_000)
    again = open_in_torch(tmp_path / "ours", "ForSequenceClassification")
    assert (again.config.problem_type, again.config.num_labels) == ("regression", 1)
    assert_computes_the_same(model, params, outputs_of(again))
