"""A decoder as a chat run trains and measures it: what its head reads, its words, its objective."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from sftjax.adapters import base_outputs, dequantize_tree
from sftjax.core import Batch, Loss, Objective, PyTree
from sftjax.core.beside import Outside, beside
from sftjax.data import ChatBatches
from sftjax.models import CausalModel
from sftjax.models.causal_model import DECODERS
from sftjax.objectives import Apply, neftune_noise, next_token
from sftjax.recipes.chat_job import TuneChat
from sftjax.recipes.methods import Parts
from sftjax.recipes.worn import Worn
from sftjax.train import spread


class Measured:
    """Rows, and the loss, perplexity and accuracy of what is learned of them, with no extras."""

    def __init__(
        self,
        model: CausalModel,
        worn: Worn,
        batches: ChatBatches,
        like: "Measured | None" = None,
    ):
        self._batches = batches
        if like is not None:
            self._run = like._run
            return
        objective = next_token(
            worn.beside(model.hidden), words_of(model, worn), softcap=model.logit_softcap
        )

        def run(params: PyTree, batch: Batch) -> tuple[Loss, Loss]:
            loss, aux = objective(params, {}, batch, None)
            return loss, aux.metrics["token_accuracy"]

        self._run = jax.jit(run)

    def __call__(self, params: PyTree) -> dict[str, float]:
        """Return `loss` (a token), `perplexity` and `token_accuracy`."""
        at = spread(self._batches.at)
        found = [self._run(params, at(step)) for step in range(self._batches.steps_per_epoch)]
        loss, right = Loss(0.0, 0.0), Loss(0.0, 0.0)
        for more_loss, more_right in found:
            loss, right = loss + more_loss, right + more_right
        mean = float(loss.mean)
        return {
            "loss": mean,
            "perplexity": math.exp(min(mean, 700.0)),
            "token_accuracy": float(right.mean),
        }


def words_of(model: CausalModel, worn: Worn) -> Callable[[PyTree], Array]:
    """Return the head of params that may wear adapters."""

    def words(params: PyTree) -> Array:
        return model.words(dequantize_tree(params if worn.plan is None else params["base"]))

    return words


def chat_parts(job: TuneChat, model: CausalModel, worn: Worn) -> Parts:
    """Return the decoder's parts; what an objective is made of is what the head reads."""
    words = words_of(model, worn)
    hidden: Apply = model.hidden
    if job.neftune_noise_alpha:
        hidden = _noisy(model, job.neftune_noise_alpha, job.training.dropout)
    base = None
    if job.base_kl:
        assert worn.plan is not None
        base = (
            base_outputs(model.hidden, worn.plan),
            lambda params: jax.lax.stop_gradient(words(params)),
        )

    def objective(hidden: Apply) -> Objective:
        return next_token(
            hidden,
            words,
            softcap=model.logit_softcap,
            label_smoothing=job.label_smoothing_factor,
            z_loss=job.z_loss,
            dft=job.dft,
            base=base,
            base_weight=job.base_kl,
            dropout=job.training.dropout or bool(job.neftune_noise_alpha),
        )

    def none(*_: Any) -> Array:
        raise ValueError("a chat run has no anchor that disturbs or distils features")

    return Parts(objective, hidden, none, none, none)


def _noisy(model: CausalModel, alpha: float, dropout: bool) -> Apply:
    """Return the model with noise on its words, wherever it looks them up."""
    table = DECODERS[model.family].words.rpartition("/")[0]

    def run(params: PyTree, batch: Batch, key: Array | None) -> Array:
        if key is None:
            return model.hidden(params, batch, None)
        own, rest = jax.random.split(key)

        def disturbed(looked: Any, args: Any, kwargs: Any, context: Any) -> Any:
            h = looked(*args, **kwargs)
            if "/".join(context.module.path) == table and context.method_name == "__call__":
                return h + neftune_noise(batch, h, alpha, own)
            return h

        with beside(Outside(disturbed)):
            return model.hidden(params, batch, rest if dropout else None)

    return run


def not_on_the_head(adapters: tuple[str, ...], model: CausalModel) -> tuple[str, ...]:
    """Keep adapters of all linear layers off the head, as PEFT does, where nothing else is said."""
    if model.architecture.tied:
        return adapters
    everywhere = ("lora", "rslora", "pissa", "olora", "dora")
    return tuple(
        text + ("," if ":" in text else ":") + "exclude=lm_head"
        if text.partition(":")[0] in everywhere and "targets" not in text and "exclude" not in text
        else text
        for text in adapters
    )


def check_head(worn: Worn) -> None:
    """Refuse an adapter on the head, which the loss reads as a matrix."""
    sites = [] if worn.plan is None else [site.path for site, _ in worn.plan.sites]
    if beside := [path for path in sites if path.rpartition("/")[2] in ("lm_head", "embed_tokens")]:
        raise ValueError(
            f"an adapter sits at {beside[0]}, and the loss reads the words without it; name the "
            "adapter's targets (targets=q_proj|v_proj), or train the words themselves (--train)"
        )
