"""How long does a BERT step take beside keras-hub's on its JAX backend?

    python -m venv peer
    peer/bin/pip install "jax==0.10.2" "keras==3.15.1" grain regex tokenizers
    peer/bin/pip install --no-deps "keras-hub==0.32.0"             # its tokenizers want TensorFlow
    python benchmarks/keras_peer.py --peer-python peer/bin/python   # about 8 minutes on 2 cores

MiniLM-L6 (22.7 M), 16 x 128 tokens, dropout off, AdamW. Both sides start from the same weights, and
the run stops if their first losses differ (keras-hub's BERT has the GELU by tanh, so ours has it
here). Keras runs `fit` on arrays in memory, as its guides do; ours is the loop of the README. Every
weight moves, the head alone (pooler and classifier), or LoRA of rank 8 on queries and values with
the head (`backbone.enable_lora(8)`, whose factors differ: each attention head has an A of its own,
and all share a B). Each side and mode is a process of its own, and they take turns.

Expect: a full step alike, and less the fewer weights move.
"""

import os
import sys
import tempfile
from typing import Any

import pairs
import peer
from hf_flax import asking, write_weights

MODES = ("full", "head", "lora")
TANH = {"hidden_act": "gelu_pytorch_tanh"}


def main() -> None:
    """Start the processes, time them in turns, print and write."""
    options = pairs.parser(__doc__, turns=8, steps=4)
    options.add_argument("--peer-python", help="a Python that has keras-hub and jax")
    options.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="(all)")
    options.add_argument("--rows", type=int, default=16, help="rows of a batch (16)")
    options.add_argument("--length", type=int, default=128, help="tokens of a row (128)")
    options.add_argument("--serve", choices=("sftjax", "keras"), help="(used inside)")
    options.add_argument("--mode", help="(used inside)")
    options.add_argument("--weights", help="(used inside)")
    args = options.parse_args()
    if args.serve:
        prepare = {"sftjax": ours, "keras": theirs}[args.serve]
        peer.serve(lambda: prepare(args))
        return
    if not args.peer_python:
        options.error("--peer-python is needed: a Python that has keras-hub")
    watch = pairs.Watch()
    rows, facts = [], {}
    with tempfile.TemporaryDirectory() as folder:
        weights = os.path.join(folder, "weights.npz")
        write_weights(weights)
        for mode in args.modes:
            words = [f"--{name}={getattr(args, name)}" for name in ("rows", "length", "steps")]
            words += [f"--mode={mode}", f"--weights={weights}"]
            pythons = {"sftjax": sys.executable, "keras": args.peer_python}
            peers = {
                side: peer.Peer(
                    [python, __file__, "--serve", side, *words], {"KERAS_BACKEND": "jax"}
                )
                for side, python in pythons.items()
            }
            rounds = {side: asking(one, args.steps) for side, one in peers.items()}
            timings = pairs.alternate(rounds, args.turns, tell=print)
            for one in peers.values():
                one.close()
            facts[mode] = {
                side: {**one.facts, "seconds": timings[side]} for side, one in peers.items()
            }
            losses = [one.facts["loss"] for one in peers.values()]
            if abs(losses[0] - losses[1]) > 1e-4:
                raise RuntimeError(f"{mode}: the first losses are {losses}, not the same work")
            found = pairs.ratio(timings["sftjax"], timings["keras"])
            rows.append(
                {
                    "what moves": mode,
                    "sftjax, ms": f"{pairs.median(timings['sftjax']).wall * 1e3:.0f}",
                    "keras-hub, ms": f"{pairs.median(timings['keras']).wall * 1e3:.0f}",
                    "ratio (min..max of a turn)": str(found),
                    "CPU time": f"{found.cpu:.3f}",
                    "numbers that move": " ".join(
                        f"{peers[side].facts['trainable']:,}" for side in ("sftjax", "keras")
                    ),
                }
            )
    pairs.publish("keras_peer", watch.facts(), [rows], facts, args.output)


def ours(args: Any) -> Any:
    """Compile our step; answer a number of steps with the seconds each took."""
    import jax
    import minilm
    import numpy as np
    import optax

    from sftjax.adapters import lora, plan_adapter, side_branch, with_adapter
    from sftjax.core import count, unflatten
    from sftjax.objectives import classification
    from sftjax.select import select
    from sftjax.train import compile_step, init, keep_freed_memory, make_step

    keep_freed_memory()
    with np.load(args.weights) as content:
        params = unflatten({name: jax.device_put(content[name]) for name in content.files})
    model = minilm.model_of(**TANH)
    batch = jax.device_put(minilm.batch_of(args.rows, args.length))
    apply, rules = model.apply, {"full": "all", "head": ["bert/pooler", "classifier"]}
    if args.mode == "lora":
        plan = plan_adapter(params, lora(8), target_modules=["query", "value"])
        params = with_adapter(params, plan, jax.random.key(1))
        apply = side_branch(model.apply, plan)
        rules["lora"] = ["adapter", "base/bert/pooler", "base/classifier"]
    trainable = select(params, rules[args.mode]).trainable
    tx = optax.adamw(minilm.LEARNING_RATE)
    state, fixed = init(params, trainable, tx, jax.random.key(0))
    step: Any = compile_step(make_step(classification(apply), tx))
    compiled = step.lower(state, fixed, batch).compile()

    def call() -> Any:
        nonlocal state
        state, metrics = compiled(state, fixed, batch)
        return metrics["loss"]

    facts = {"trainable": count(state.trainable), "versions": pairs.versions()}
    return {"loss": float(call()), **facts}, lambda steps: pairs.rounds_of(call, steps)()


def theirs(args: Any) -> Any:
    """Do the same with a `BertTextClassifier` of keras-hub and `fit`."""
    import time

    import keras
    import keras_hub
    import minilm
    import numpy as np

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=minilm.CONFIG["vocab_size"],
        num_layers=minilm.CONFIG["num_hidden_layers"],
        num_heads=minilm.CONFIG["num_attention_heads"],
        hidden_dim=minilm.CONFIG["hidden_size"],
        intermediate_dim=minilm.CONFIG["intermediate_size"],
        dropout=0.0,
        max_sequence_length=minilm.CONFIG["max_position_embeddings"],
    )
    model = keras_hub.models.BertTextClassifier(backbone=backbone, num_classes=2, dropout=0.0)
    with np.load(args.weights) as content:
        for weight in model.weights:
            value = content[our_name(weight.path)]
            weight.assign(value.reshape(weight.shape))
    # The pooler belongs to the backbone here.
    if args.mode == "head":
        backbone.trainable = True
        for layer in backbone.layers:
            layer.trainable = layer.name == "pooled_dense"
    if args.mode == "lora":
        backbone.enable_lora(8)
        backbone.get_layer("pooled_dense").trainable = True
        for weight in backbone.trainable_weights:  # biases beside adapters stand still, as ours
            weight.trainable = "lora" in weight.path or "pooled_dense" in weight.path
    batch = minilm.batch_of(args.rows, args.length)
    given = {
        "token_ids": batch["input_ids"],
        "segment_ids": batch["token_type_ids"],
        "padding_mask": batch["attention_mask"],
    }
    model.compile(
        optimizer=keras.optimizers.AdamW(minilm.LEARNING_RATE, weight_decay=1e-4, epsilon=1e-8),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[],
    )

    def fit(steps: int) -> float:
        many = {name: np.concatenate([value] * steps) for name, value in given.items()}
        labels = np.concatenate([batch["labels"]] * steps)
        seen = model.fit(many, labels, batch_size=args.rows, shuffle=False, verbose=0)
        return seen.history["loss"][-1]

    def answer(steps: int) -> pairs.Timing:
        wall, cpu = time.perf_counter(), time.process_time()
        fit(steps)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return pairs.Timing(wall / steps, cpu / steps)

    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    loss = fit(1)
    fit(args.steps)
    versions = {"keras": keras.__version__, "keras-hub": keras_hub.__version__}
    return {"loss": loss, "trainable": trainable, "versions": versions}, answer


def our_name(path: str) -> str:
    """Return the path of our leaf of a keras-hub weight."""
    names = {
        "token_embedding/embeddings": "bert/embeddings/word_embeddings/embedding",
        "position_embedding/embeddings": "bert/embeddings/position_embeddings/embedding",
        "segment_embedding/embeddings": "bert/embeddings/token_type_embeddings/embedding",
        "embeddings_layer_norm": "bert/embeddings/LayerNorm",
        "pooled_dense": "bert/pooler/dense",
        "logits": "classifier",
        "transformer_layer_": "bert/encoder/layer/",
        "self_attention_layer/attention_output": "attention/output/dense",
        "self_attention_layer_norm": "attention/output/LayerNorm",
        "self_attention_layer": "attention/self",
        "feedforward_layer_norm": "output/LayerNorm",
        "feedforward_intermediate_dense": "intermediate/dense",
        "feedforward_output_dense": "output/dense",
        "gamma": "scale",
        "beta": "bias",
    }
    for theirs, mine in names.items():
        path = path.replace(theirs, mine)
    return path


if __name__ == "__main__":
    main()
