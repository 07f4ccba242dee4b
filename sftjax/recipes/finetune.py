"""Fine-tune by what moves, how fast, and by which dose it is held: the part that recipes share."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from sftjax.anchor import adamw, anchor_of, strength_of
from sftjax.core import (
    Batch,
    Fixed,
    Objective,
    PyTree,
    TrainState,
    combine,
    map_with_path,
    partition,
)
from sftjax.recipes.progress import progress
from sftjax.select import Description, Selection, describe, select
from sftjax.train import (
    Fit,
    compile_step,
    fit,
    init,
    linear_schedule,
    make_step,
    open_checkpoints,
    replicate,
    spread,
)

LESS_IS_BETTER = ("loss", "mse", "rmse", "mae", "nll", "brier", "ece")
"""Endings of metrics of which the smallest value is the best."""


@dataclasses.dataclass(frozen=True)
class Training:
    """How to train. Names are those that users of transformers and TRL know."""

    train: tuple[str, ...] = ("last:2",)
    """What moves: `all`, `last:K` blocks, `head`, `new`, or path patterns; `PATTERN=RATE`
    multiplies the learning rate. The first match decides."""
    dose: float = 1.0
    """How strongly what moves is held to its pretrained values (L2-SP): 0 not at all, 1 roughly
    halves the distance travelled, 4 quarters it. A new head is never held."""
    coupled: bool = False
    """Let the pull pass through Adam as part of the gradient, instead of beside it."""
    learning_rate: float = 1e-4
    """Peak of the schedule: linear warmup, linear decay to zero."""
    warmup_ratio: float = 0.1
    """Share of the updates spent warming up."""
    num_train_epochs: float = 3.0
    """Passes over the training rows."""
    max_steps: int = 0
    """Updates; overrides the epochs when above 0."""
    per_device_train_batch_size: int = 32
    """Rows per device and micro-batch."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per update."""
    weight_decay: float = 0.01
    """Plain decay of matrices that have no anchor."""
    max_grad_norm: float = 1.0
    """Clip the gradient's norm over the trainable leaves; 0 never clips."""
    dropout: bool = False
    """Use the dropout rates of the model's config while training."""
    bf16: bool = False
    """Compute in bfloat16 and keep frozen weights in it; trainable weights stay float32."""
    seed: int = 0
    """Of the new head, the order of rows and dropout."""
    eval_steps: int = 0
    """Updates between evaluations; 0 is once an epoch."""
    early_stopping_patience: int = 0
    """Stop after this many evaluations without a new best; 0 never."""
    metric_for_best_model: str = "eval_loss"
    """Which evaluation number picks the weights that are kept."""
    save_steps: int = 0
    """Updates between checkpoints; 0 is at every evaluation."""
    logging_steps: int = 10
    """Updates in a record of the history."""

    def rules(self) -> list[tuple[str, float]]:
        """Return `train` as rules with rates.

        >>> Training(train=("last:1=0.5", "head")).rules()
        [('last:1', 0.5), ('head', 1.0)]
        """
        rules = []
        for text in self.train:
            pattern, _, rate = text.partition("=")
            try:
                rules.append((pattern, float(rate) if rate else 1.0))
            except ValueError:
                raise ValueError(
                    f"--train {text!r}: write PATTERN or PATTERN=RATE, as in 'last:2=0.5'"
                ) from None
        return rules

    @property
    def rows(self) -> int:
        """Rows in one update."""
        per_device = self.per_device_train_batch_size * self.gradient_accumulation_steps
        return per_device * jax.device_count()

    def num_steps(self, steps_per_epoch: int) -> int:
        """Return the updates in the run.

        >>> Training(num_train_epochs=0.5).num_steps(30)
        15
        """
        return self.max_steps or max(1, round(self.num_train_epochs * steps_per_epoch))


class Stream(Protocol):
    """Training batches whose content is a function of the update's number."""

    @property
    def steps_per_epoch(self) -> int:
        """Updates in one pass."""
        ...

    def at(self, step: int) -> Batch:
        """Return the batch of an update, counted from 0."""
        ...


class Tuned(NamedTuple):
    """What fine-tuning gives."""

    params: PyTree
    """The best weights, whole tree."""
    fit: Fit
    selection: Selection
    description: Description
    strength: float
    """The anchor's strength (lambda) that the dose came to; 0 without an anchor."""
    num_steps: int


def finetune(
    params: PyTree,
    new: Collection[str],
    objective: Objective,
    stream: Stream,
    training: Training,
    *,
    evaluate: Callable[[PyTree], dict[str, float]] | None = None,
    checkpoint_folder: pathlib.Path | None = None,
    title: str = "training",
    tell: Callable[[str], None] = lambda text: None,
) -> Tuned:
    """Select, anchor, compile and fit.

    Args:
      params: the pretrained tree, with its new leaves.
      new: paths of the new leaves.
      objective: `(params, model_state, batch, key) -> (Loss, Aux)`.
      stream: the training batches.
      training: how.
      evaluate: `params -> {"eval_loss": ...}`; `None` keeps the last weights.
      checkpoint_folder: where to save and resume; `None` saves nothing.
      title: what the progress bar says.
      tell: is given the selection's report before anything is compiled.

    Returns:
      A `Tuned`.
    """
    chosen = select(params, training.rules(), new=new)
    num_steps = training.num_steps(stream.steps_per_epoch)
    schedule = linear_schedule(
        training.learning_rate, num_steps, warmup_ratio=training.warmup_ratio
    )
    anchor = anchor_of(params, chosen.trainable, new=new) if training.dose else None
    strength = strength_of(training.dose, schedule, num_steps) if training.dose else 0.0
    tx = adamw(
        schedule,
        strength=strength,
        coupled=training.coupled,
        weight_decay=training.weight_decay,
        rates=chosen.rate,
        max_grad_norm=training.max_grad_norm or None,
    )
    report = describe(params, chosen, tx=tx, anchor=anchor)
    tell(str(report))
    state, fixed = init(
        params,
        chosen.trainable,
        tx,
        jax.random.key(training.seed),
        anchor=anchor,
        frozen_dtype=jnp.bfloat16 if training.bf16 else None,
    )
    state, fixed = replicate((state, fixed))
    step = compile_step(make_step(objective, tx, accumulate=training.gradient_accumulation_steps))

    def score(state: TrainState, fixed: Fixed) -> dict[str, float]:
        assert evaluate is not None
        return evaluate(combine(state.trainable, fixed.frozen))

    every = training.eval_steps or stream.steps_per_epoch
    with contextlib.ExitStack() as stack:
        checkpoints = None
        if checkpoint_folder is not None:
            checkpoints = stack.enter_context(open_checkpoints(checkpoint_folder))
        log = stack.enter_context(progress(title, num_steps))
        run = fit(
            step,
            state,
            fixed,
            spread(stream.at),
            num_steps,
            evaluate=None if evaluate is None else score,
            eval_steps=every,
            metric=training.metric_for_best_model,
            greater_is_better=not training.metric_for_best_model.endswith(LESS_IS_BETTER),
            patience=training.early_stopping_patience,
            checkpoints=checkpoints,
            save_steps=training.save_steps or every,
            log_steps=training.logging_steps,
            log=log,
        )
    # Frozen leaves as they came: those in `fixed` may have been cast.
    best = combine(run.best, partition(params, chosen.trainable)[1])
    history = [
        {**entry, "learning_rate": float(jnp.asarray(schedule(int(entry["step"]) - 1)))}
        if "loss" in entry
        else entry
        for entry in run.history
    ]
    return Tuned(best, run._replace(history=history), chosen, report, strength, num_steps)


def pretrained(params: PyTree, new: Collection[str]) -> PyTree:
    """Return the params with holes where a leaf has no pretrained value.

    >>> pretrained({"trunk": 1, "head": 2}, ["head"])
    {'head': None, 'trunk': 1}
    """
    return map_with_path(lambda path, leaf: None if path in new else leaf, params)
