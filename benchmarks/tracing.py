"""How long until a step is traced and lowered, its equal blocks once for all or one by one?

    python benchmarks/tracing.py                  # about 3 minutes

A step of AdamW on shapes alone: nothing is compiled, no weight is made. What Python does here it
does at every start, on any device, however much of the compiled program lies in the cache. The
columns: seconds of the processor with `models.Alike` and without it, the ratio (wall, least and
most of a turn), and the size of the program that XLA is handed.

- MiniLM-L6 and BERT-base, classification, all weights, with dropout.
- ViT-B/16, classification, all weights.
- T5-base, summarization, all weights, with dropout.
- SmolLM2-135M and a Llama of 7 billion, LoRA on all linear layers.

Expect: the deeper the model, the more is saved; what remains is the update, which goes over leaves
one by one, and XLA's own work.
"""

import contextlib
from typing import Any
from unittest import mock

import gpu_networks
import jax
import jax.numpy as jnp
import optax
import pairs

from sftjax.adapters import lora, plan_adapter, side_branch, with_adapter
from sftjax.anchor import adamw
from sftjax.core import Aux, Loss
from sftjax.models import Head, alike, build
from sftjax.train import init, make_step

BERT = gpu_networks.BERT | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
LLAMA = {
    "model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096,
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "intermediate_size": 11008,
}  # fmt: skip
MINI = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
SMALL = {
    "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "tie_word_embeddings": True,
}  # fmt: skip
T5 = {
    "model_type": "t5", "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072,
    "num_layers": 12, "num_heads": 12, "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
LABELS = ("bad", "good")
MODELS = {
    "MiniLM-L6": (BERT | MINI, Head("sequence", LABELS), False),
    "BERT-base": (BERT, Head("sequence", LABELS), False),
    "ViT-B/16": (gpu_networks.VIT, Head("image", LABELS), False),
    "T5-base": (T5, Head("seq2seq-lm"), False),
    "SmolLM2-135M, LoRA": (LLAMA | SMALL, Head("causal-lm"), True),
    "Llama 7B, LoRA": (LLAMA, Head("causal-lm"), True),
}
"""Config, head, and whether LoRA moves instead of all weights."""


def main() -> None:
    """Measure, print and write."""
    args = pairs.parser(__doc__, turns=3, steps=1).parse_args()
    watch = pairs.Watch()
    rows, timings = [], {}
    for name in MODELS:
        rounds = {"alike": lowering(name, once=True), "one by one": lowering(name, once=False)}
        found = pairs.alternate({key: one[0] for key, one in rounds.items()}, args.turns)
        sizes = {key: len(one[1][0].as_text()) for key, one in rounds.items()}
        timings[name] = {key: [list(one) for one in found[key]] for key in found}
        rows.append(
            {
                "step": name,
                "alike, s": f"{pairs.median(found['alike']).cpu:.2f}",
                "one by one, s": f"{pairs.median(found['one by one']).cpu:.2f}",
                "ratio": str(pairs.ratio(found["alike"], found["one by one"])),
                "program, KB": f"{sizes['alike'] / 1e3:,.0f}",
                "one by one, KB": f"{sizes['one by one'] / 1e3:,.0f}",
            }
        )
        print(rows[-1], flush=True)
    pairs.publish("tracing", watch.facts(), [rows], {"timings": timings}, args.output)


def lowering(name: str, *, once: bool) -> tuple[pairs.Round, list[Any]]:
    """Return a round that traces and lowers a step, and a list of the last that it lowered."""
    apply, tx, state, fixed, batch = parts_of(name)
    last: list[Any] = []

    def objective(params: Any, model_state: Any, batch: Any, key: Any) -> tuple[Loss, Aux]:
        del model_state
        output = apply(params, batch, key)
        return Loss(jnp.square(output).sum(), jnp.float32(output.size)), Aux({})

    def lower() -> tuple[()]:
        jax.clear_caches()
        step = jax.jit(make_step(objective, tx), donate_argnums=0)
        # Beside an onlooker blocks are called one by one; this one takes no time of its own.
        with contextlib.nullcontext() if once else mock.patch.object(alike, "standing", _onlooker):
            last[:] = [step.lower(state, fixed, batch)]
        return ()

    return pairs.rounds_of(lower, 1), last


def _onlooker() -> None:
    """Say that somebody stands beside the modules who is not of sftjax."""


def parts_of(name: str) -> tuple[Any, ...]:
    """Return what is applied, the optimizer, and state, fixed and batch in shapes."""
    config, head, adapted = MODELS[name]
    model = build(config, head)
    shapes, key, apply = model.shapes(), jax.random.key(0), model.apply
    tx: optax.GradientTransformation = adamw(1e-4, weight_decay=0.01, max_grad_norm=1.0)
    moves = jax.tree.map(lambda _: not adapted, shapes)
    if adapted:
        plan = plan_adapter(shapes, lora(r=8))
        apply = side_branch(model.apply, plan)
        shapes = jax.eval_shape(lambda params, key: with_adapter(params, plan, key), shapes, key)
        moves = {"base": moves, "adapter": jax.tree.map(lambda _: True, shapes["adapter"])}
    state, fixed = jax.eval_shape(lambda params, key: init(params, moves, tx, key), shapes, key)
    words = jax.ShapeDtypeStruct((8, 128), jnp.int32)
    batch = {"input_ids": words, "attention_mask": words}
    if head.kind == "image":
        batch = {"pixel_values": jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32)}
    if head.kind == "seq2seq-lm":
        batch["decoder_input_ids"] = words
    return apply, tx, state, fixed, batch


if __name__ == "__main__":
    main()
