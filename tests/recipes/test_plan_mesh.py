"""A 7B Llama is planned for eight devices without being anywhere; a run on a mesh is the run."""

import json
import sys

import jax
import numpy as np

sys.path.insert(0, __file__.rpartition("/")[0])
from tiny_llama import write_rows, write_tiny_llama

from sftjax.core import flatten, nbytes
from sftjax.recipes.chat import chat
from sftjax.recipes.chat_job import TuneChat
from sftjax.recipes.chat_rows import ChatRows
from sftjax.recipes.plan import Plan, plan
from sftjax.recipes.training import Training

SEVEN = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
"""Llama 2 7B."""


def test_layers_of_a_7b_llama_take_what_is_planned_on_eight_devices(tmp_path):
    """Two of its 32 layers, for time; all of them were planned by hand."""
    (tmp_path / "config.json").write_text(json.dumps(SEVEN | {"num_hidden_layers": 2}))
    training = Training(
        train=("all",), anchor="none", mesh="fsdp=4,tensor=2", per_device_train_batch_size=1,
        bf16=True, optim="adamw", max_steps=10,
    )  # fmt: skip
    found = plan(Plan(str(tmp_path), training, length=128, remat="full", memory="80GB"), print)
    memory = found.memory
    whole = sum(leaf.size for leaf in jax.tree.leaves(found.state.trainable))
    assert whole == 2 * 32000 * 4096 + 2 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096
    assert memory.trained < 4 * whole / 8 * 1.01  # norms lie whole
    assert memory.moments < 2 * memory.trained * 1.01
    counted = memory.frozen + memory.trained + memory.moments + memory.anchor + memory.batch
    assert abs(counted / memory.arguments - 1) < 0.05
    assert found.fits
    assert found.batch["input_ids"].shape == (4, 128)


def test_a_chat_run_on_a_mesh_is_the_run(tmp_path):
    model, data = write_tiny_llama(tmp_path / "llama"), write_rows(tmp_path / "rows.jsonl", 12)
    runs = {}
    for mesh, each in (("", 1), ("data=2,fsdp=2,tensor=2", 2)):
        training = Training(
            adapter=("lora:r=4",), max_steps=3, per_device_train_batch_size=each, mesh=mesh,
            logging_steps=1, learning_rate=1e-2,
        )  # fmt: skip
        job = TuneChat(
            tmp_path / f"run{len(runs)}", str(model), str(data), ChatRows(max_length=256), training,
            per_device_eval_batch_size=1, reference_rows=0, samples=0,
        )  # fmt: skip
        runs[mesh] = chat(job, lambda text: None)
    plain, meshed = runs.values()
    for path, leaf in flatten(plain.tuned.params).items():
        other = np.asarray(flatten(meshed.tuned.params)[path], np.float32)
        np.testing.assert_allclose(other, np.asarray(leaf, np.float32), rtol=0, atol=1e-4)
    for name, value in plain.metrics.items():
        assert abs(meshed.metrics[name] - value) < 1e-4 * abs(value) + 1e-5
    moving = meshed.tuned.fit.state.trainable
    assert nbytes(moving) == nbytes(plain.tuned.fit.state.trainable)
    assert dict(jax.tree.leaves(moving)[0].sharding.mesh.shape)["fsdp"] == 2
    facts = [json.loads((tmp_path / f"run{n}" / "run.json").read_text()) for n in range(2)]
    assert all("mesh" not in fact for fact in facts), "a run may go on, on another mesh"
