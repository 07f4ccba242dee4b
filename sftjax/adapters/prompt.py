r"""Prompt tuning: learned vectors that the model reads before the tokens of each row."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from sftjax.adapters.kind import Call, Kind, Leaves, Site, kernel_of
from sftjax.core import Batch

PLACE = -1
"""The id at a prompt's places: no row of a word table, and no padding."""

STARTS = ("SAMPLE_VOCAB", "RANDOM")


def prompt_tuning(
    num_virtual_tokens: int = 20, *, prompt_tuning_init: str | Sequence[int] = "SAMPLE_VOCAB"
) -> Kind:
    r"""Return the kind that puts P learned word vectors before the tokens of each row.

    $$ f([p_1, \dots, p_P, E_{t_1}, \dots, E_{t_T}]) $$

    As in PEFT, the prompt takes the first P positions (of type 0, always attended to), and the
    tokens the next T: the model must read P + T. Outputs of tokens come back without the prompt's
    places. Also as in PEFT, a head that reads the first place of a row (`sequence`, `pooled`,
    `first`) then reads the first of the prompt, not [CLS], and a `mean` is over prompt and tokens.
    A prompt has no scale: run the base itself for the base.

    Args:
      num_virtual_tokens: P.
      prompt_tuning_init: where the vectors start: `"SAMPLE_VOCAB"`, at words drawn from the table;
        `"RANDOM"`, normal with deviation 1; or the ids of tokens (PEFT's TEXT), repeated or cut
        to P.

    Returns:
      A `Kind` with the leaf `prompt` (P, D), beside the word embeddings.

    Raises:
      ValueError: if P is below 1, or the start unknown; from `attach`, if an id is not in the
        table; when tracing, if the batch has no `input_ids` (B, T), is packed, or holds hidden
        states computed without the prompt.

    References:
      Lester et al. 2021, arXiv:2104.08691

    >>> kind = prompt_tuning(3, prompt_tuning_init=[4, 1])
    >>> table = {"embedding": jnp.arange(5.0)[:, None] * jnp.ones(2)}
    >>> leaves = kind.init(Site("words", "embedding", (5, 2)), jax.random.key(0), table)
    >>> leaves["prompt"].tolist()
    [[4.0, 4.0], [1.0, 1.0], [4.0, 4.0]]
    >>> kind.batch({"input_ids": jnp.array([[7, 8]])})["input_ids"].tolist()
    [[-1, -1, -1, 7, 8]]
    """
    p = check_num_virtual_tokens(num_virtual_tokens)
    ids = None if isinstance(prompt_tuning_init, str) else _checked(prompt_tuning_init)
    if ids is None and prompt_tuning_init not in STARTS:
        raise ValueError(
            f"prompt_tuning_init={prompt_tuning_init!r}; known: {', '.join(STARTS)}, or the ids of "
            "tokens to start from"
        )

    def init(site: Site, key: Array, params: Leaves) -> dict[str, Array]:
        rows, width = site.shape
        if prompt_tuning_init == "RANDOM":
            return {"prompt": jax.random.normal(key, (p, width))}
        if ids is None:
            taken = jax.random.randint(key, (p,), 0, rows)
        elif max(ids) >= rows:
            raise ValueError(
                f"a prompt starts from token id {max(ids)}, and {site.path} has the ids 0 to "
                f"{rows - 1}; give ids of this model's tokenizer"
            )
        else:
            taken = jnp.array([ids[place % len(ids)] for place in range(p)])
        return {"prompt": jnp.asarray(kernel_of(params)[taken], jnp.float32)}

    def branch(leaves: Leaves, call: Call) -> Array:
        if not isinstance(call.scale, int | float) or call.scale != 1:
            raise ValueError(
                "a prompt has no scale: its places are before the tokens or they are not; for "
                "scale 0 run the base itself"
            )
        y = call.base(jnp.maximum(call.x, 0))
        length = call.x.shape[-1]
        prompt = jnp.pad(leaves["prompt"], ((0, max(0, length - p)), (0, 0)))[:length]
        # By the id and not the place alone: a table may also be read for what has no prompt.
        return jnp.where(call.x[..., None] == PLACE, prompt.astype(y.dtype), y)

    def output(given: Any, batch: Batch) -> Any:
        longer = p + batch["input_ids"].shape[1]
        return jax.tree.map(lambda y: y[:, p:] if y.ndim > 2 and y.shape[1] == longer else y, given)

    return Kind(
        "prompt",
        init,
        branch,
        leaves=("embedding",),
        batch=lambda batch: _longer(batch, p),
        output=output,
        config={
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": p,
            "prompt_tuning_init": "TEXT" if ids else prompt_tuning_init,
        },
        targets=("word_embeddings",),
    )


def check_num_virtual_tokens(p: Any) -> int:
    """Return P.

    Raises:
      ValueError: if it is no integer of 1 or more.
    """
    if isinstance(p, bool) or not isinstance(p, int) or p < 1:
        raise ValueError(f"num_virtual_tokens={p!r}; it is an integer of 1 or more")
    return p


def _checked(ids: Sequence[int]) -> list[int]:
    if not len(ids) or min(ids) < 0:
        raise ValueError(f"a prompt starts from the ids {list(ids)}; give one or more, 0 or above")
    return [int(token) for token in ids]


def _longer(batch: Batch, p: int) -> Batch:
    """Return the batch with P places before each row, in all that a model reads of tokens."""
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if ids is None or jnp.ndim(ids) != 2:
        raise ValueError(
            "a prompt stands before the tokens of a batch, and this one has no input_ids (B, T)"
        )
    if batch.get("segment_ids") is not None:
        raise ValueError(
            "segment_ids say that rows hold several examples, and a prompt stands before one; "
            "unpack the rows"
        )
    if batch.get("hidden") is not None:
        raise ValueError(
            "the batch holds hidden states of a model's lower part, which ran without the prompt; "
            "run the whole model"
        )
    before = {"input_ids": PLACE, "attention_mask": 1, "token_type_ids": 0}
    longer = {
        name: jnp.pad(jnp.asarray(batch[name]), ((0, 0), (p, 0)), constant_values=value)
        for name, value in before.items()
        if batch.get(name) is not None
    }
    if batch.get("position_ids") is not None:
        places = jnp.asarray(batch["position_ids"])
        # The prompt's numbers start where the row's did, the tokens' are P further on.
        longer["position_ids"] = jnp.concatenate(
            [places[:, :1] + jnp.arange(p, dtype=places.dtype), places + p], axis=1
        )
    return {**batch, **longer}
