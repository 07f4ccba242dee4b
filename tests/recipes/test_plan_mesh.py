"""A 7B Llama is planned for eight devices without being anywhere; a run on a mesh is the run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from sftjax.core import flatten, unflatten
from sftjax.objectives import classification
from sftjax.recipes.finetune import finetune
from sftjax.recipes.methods import Parts
from sftjax.recipes.plan import Plan, plan
from sftjax.recipes.streams import Stream
from sftjax.recipes.training import Training
from sftjax.train import use_mesh

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
    # Beside what is counted the program has room to work: weights fetched whole, on CPU many.
    assert 0.7 < memory.planned / memory.total < 1.02
    assert found.fits
    assert found.batch["input_ids"].shape == (4, 128)


def logits(params, batch, key=None):
    x = jnp.tanh(batch["x"] @ params["layer"]["fc1"]["kernel"])
    return jnp.tanh(x @ params["layer"]["fc2"]["kernel"]) @ params["head"]["kernel"]


def rows_at(step):
    draw = np.random.default_rng(step)
    x = draw.normal(size=(16, 16)).astype(np.float32)
    return {"x": x, "labels": (x[:, 0] > 0).astype(np.int32)}


def tuned(folder, mesh, each):
    """Fine-tune a small tree by the part that recipes share."""
    draw = np.random.default_rng(0)
    shapes = {
        "layer/fc1/kernel": (16, 256),
        "layer/fc2/kernel": (256, 256),
        "head/kernel": (256, 2),
    }
    params = unflatten({
        path: jnp.asarray(draw.normal(size=shape) / 16, jnp.float32)
        for path, shape in shapes.items()
    })  # fmt: skip
    run = jax.jit(logits)

    def evaluate(params):
        batch = rows_at(99)
        right = np.asarray(run(params, batch)).argmax(-1) == batch["labels"]
        return {"eval_loss": 1.0 - float(right.mean())}

    training = Training(
        train=("all",), max_steps=4, per_device_train_batch_size=each, mesh=mesh, logging_steps=1,
        learning_rate=3e-3, average="ema:0.5",
    )  # fmt: skip
    parts = Parts(classification, logits, logits, logits, logits)  # type: ignore[arg-type]
    assert training.rows == 16
    stream = Stream(4, rows_at)
    return finetune(
        params, ["head/kernel"], parts, stream, training, evaluate=evaluate,
        folder=folder,
    )  # fmt: skip


def test_a_recipe_on_a_mesh_is_the_same_run_and_goes_on_there(tmp_path):
    try:
        plain = tuned(tmp_path / "plain", "", 2)
        meshed = tuned(tmp_path / "meshed", "data=2,fsdp=2,tensor=2", 4)
        resumed = tuned(tmp_path / "plain", "fsdp=4,tensor=2", 4)
    finally:
        use_mesh("")
    for found in (meshed, resumed):
        for path, leaf in flatten(plain.params).items():
            np.testing.assert_allclose(flatten(found.params)[path], leaf, rtol=0, atol=1e-5)
    losses = [[row["loss"] for row in run.fit.history if "loss" in row] for run in (plain, meshed)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    where = flatten(meshed.fit.state.trainable)["layer/fc2/kernel"].sharding
    assert where.spec == PartitionSpec("tensor", "fsdp")
    assert "mesh" not in Training().facts(), "a run may go on, on another mesh"
    assert Training(mesh="fsdp=4,tensor=2").row_devices == 4, "if it has as many rows"
