"""An adapter's folder that does not fit its base, or says what is not known, is refused by name."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sftjax.adapters import dora, ia3, lora, plan_adapter, with_adapter
from sftjax.core import flatten
from sftjax.hub import load, load_adapter, save, save_adapter
from sftjax.models import Head, bert, build

HEAD = Head("sequence", ("bad", "good"))


def config(width=16):
    sizes = dict.fromkeys(bert.SIZES, 8) | {
        "vocab_size": 30, "hidden_size": width, "num_attention_heads": 2, "num_hidden_layers": 2,
    }  # fmt: skip
    return {"model_type": "bert", **sizes}


@pytest.fixture
def base(tmp_path):
    """A base as it was loaded from a folder."""
    model = build(config(), HEAD)
    save(tmp_path / "base", model, model.init(jax.random.key(0)))
    return load(tmp_path / "base")


@pytest.fixture
def folder(base, tmp_path):
    """A LoRA of it."""
    plan = plan_adapter(base.params, lora(r=2), target_modules=["query"])
    joined = with_adapter(base.params, plan, jax.random.key(1))
    trained = ["classifier/kernel", "classifier/bias"]
    return save_adapter(
        tmp_path / "adapter", base.model, joined, plan, report=base.report, trained=trained
    )


def changed(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


class TestFolder:
    def test_names_its_base_and_what_is_saved_whole(self, base, folder):
        written = json.loads((folder / "adapter_config.json").read_text())
        assert written["base_model_name_or_path"] == base.report.source
        assert written["modules_to_save"] == ["classifier"]
        assert written["task_type"] == "SEQ_CLS"
        loaded = load_adapter(folder, base.model, base.params, report=base.report)
        assert loaded.trained == ("classifier/bias", "classifier/kernel")
        assert "load_adapter" in (folder / "README.md").read_text()

    def test_a_resized_embedding_is_saved_whole(self, base, tmp_path):
        plan = plan_adapter(base.params, lora(r=2), target_modules=["query"])
        joined = with_adapter(base.params, plan, jax.random.key(1))
        word = "bert/embeddings/word_embeddings/embedding"
        out = save_adapter(tmp_path / "out", base.model, joined, plan, trained=[word])
        tensors = load_file(out / "adapter_model.safetensors")
        np.testing.assert_array_equal(
            tensors["base_model.model.bert.embeddings.word_embeddings.weight"],
            flatten(base.params)[word],
        )
        assert load_adapter(out, base.model, base.params).trained == (word,)


class TestRefused:
    def test_another_base_by_its_hash(self, base, folder, tmp_path):
        save(tmp_path / "other", base.model, base.model.init(jax.random.key(9)))
        other = load(tmp_path / "other")
        with pytest.raises(
            ValueError, match=r"trained on weights with sha256 .* fits its own base"
        ):
            load_adapter(folder, other.model, other.params, report=other.report)
        load_adapter(folder, other.model, other.params)  # asked for without the report

    def test_another_base_by_its_shapes(self, folder):
        model = build(config(32), HEAD)
        with pytest.raises(ValueError, match=r"gives classifier/.* the shape .* the model has"):
            load_adapter(folder, model, model.init(jax.random.key(0)))

    def test_a_base_without_that_head(self, base, folder):
        bare = load(base.report.folder, head="hidden")
        with pytest.raises(ValueError, match="2 tensors belong to no module of this bert"):
            load_adapter(folder, bare.model, bare.params)

    def test_other_numbers_of_classes(self, base, folder):
        three = load(base.report.folder, head="sequence", labels=("a", "b", "c"))
        with pytest.raises(ValueError, match="load the base with the labels"):
            load_adapter(folder, three.model, three.params)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"peft_type": "ADALORA"}, "peft_type is 'ADALORA'"),
            ({"lora_bias": True}, "lora_bias=True changes what the adapter computes"),
            ({"use_qalora": True}, "use_qalora=True changes"),
            ({"init_lora_weights": "corda"}, "init_lora_weights='corda' changed the base"),
            ({"r": 4}, "the config says rank 4, and its A factor has 2 rows"),
        ],
    )
    def test_configs(self, base, folder, fields, words):
        changed(folder, **fields)
        with pytest.raises(ValueError, match=words):
            load_adapter(folder, base.model, base.params)

    def test_damaged_folders(self, base, folder):
        (folder / "adapter_config.json").write_text("{")
        with pytest.raises(ValueError, match="is not JSON"):
            load_adapter(folder, base.model, base.params)
        (folder / "adapter_config.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"has no adapter_config.json"):
            load_adapter(folder, base.model, base.params)

    def test_pickles_are_not_opened(self, base, folder):
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        with pytest.raises(ValueError, match="torch pickle"):
            load_adapter(folder, base.model, base.params)
        (folder / "adapter_model.bin").unlink()
        with pytest.raises(FileNotFoundError, match="copy the adapter again"):
            load_adapter(folder, base.model, base.params)

    def test_a_factor_that_is_missing(self, base, folder):
        path = folder / "adapter_model.safetensors"
        tensors = {
            k: v for k, v in load_file(path).items() if "0.attention.self.query.lora_A" not in k
        }
        save_file(tensors, path)
        with pytest.raises(ValueError, match=r"layer.0.* no A factor; the folder is incomplete"):
            load_adapter(folder, base.model, base.params)

    def test_plans_that_no_peft_config_can_say(self, base, tmp_path):
        both = plan_adapter(base.params, lora(r=2), target_modules=["query"]) + plan_adapter(
            base.params, ia3(), target_modules=["value"]
        )
        joined = with_adapter(base.params, both, jax.random.key(0))
        with pytest.raises(ValueError, match="this plan holds ia3, lora"):
            save_adapter(tmp_path / "x", base.model, joined, both)
        mixed = plan_adapter(base.params, dora(r=2), target_modules=["query"]) + plan_adapter(
            base.params, dora(r=2, use_rslora=True), target_modules=["value"]
        )
        joined = with_adapter(base.params, mixed, jax.random.key(0))
        with pytest.raises(ValueError, match=r"use_rslora \[False, True\]"):
            save_adapter(tmp_path / "x", base.model, joined, mixed)

    def test_a_module_both_adapted_and_trained(self, base, tmp_path):
        plan = plan_adapter(base.params, lora(r=2), target_modules=["query"])
        joined = with_adapter(base.params, plan, jax.random.key(0))
        bias = "bert/encoder/layer/0/attention/self/query/bias"
        with pytest.raises(ValueError, match="has an adapter and was trained itself"):
            save_adapter(tmp_path / "x", base.model, joined, plan, trained=[bias])
