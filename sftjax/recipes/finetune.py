"""Fine-tune by what moves, how fast, and by which dose it is held: the part that recipes share."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from sftjax.anchor import anchor_of
from sftjax.core import (
    Batch,
    Fixed,
    PyTree,
    TrainState,
    combine,
    count,
    flatten,
    map_with_path,
    partition,
)
from sftjax.recipes.methods import (
    METHODS,
    STRONG,
    Method,
    Parts,
    Setting,
    build_method,
    masked,
    parse,
)
from sftjax.recipes.phase_words import phases_of_words, with_new
from sftjax.recipes.progress import progress
from sftjax.select import Description, Selection, describe, layerwise, scaled, select
from sftjax.train import (
    Fit,
    Record,
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
    anchor: str = "l2-sp"
    """How what moves is held to what pretraining taught: l2-sp, ewc, recadam, difference, mixout,
    features, logits, ema, wise-ft take the dose; none, spd, r3f, smart, sam, child-f, child-d, lisa
    have none."""
    dose: float = 1.0
    """How strongly: 0 not at all, 1 leaves about 0.6 of the distance that would be travelled
    without an anchor, 4 a quarter. A new head is never held."""
    layer_decay: float = 1.0
    """Multiply the learning rate by this for each block further from the top (BEiT numbering)."""
    phases: tuple[str, ...] = ()
    """Train in phases: `lp` (what is new), `ft` (what --train names), `gradual:K` (last:1, ...,
    last:K), or any rule; `NAME@SHARE` gives it a share of the updates."""
    probe_learning_rate: float = 1e-3
    """Peak of the schedule in phases that move nothing pretrained."""
    strength: float | None = None
    """The pull of l2-sp and ewc itself, instead of a dose."""
    coupled: bool = False
    """Let that pull pass through Adam as part of the gradient, instead of beside it. It has no dose
    then: give --strength (0.1 is a usual one)."""
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

    def at(self, step: int, /) -> Batch:
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
    """What the dose came to (see `methods.Method.strength`); 0 without one."""
    num_steps: int


def finetune(
    params: PyTree,
    new: Collection[str],
    parts: Parts,
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
      parts: the task's objective and what methods need of the model.
      stream: the training batches.
      training: how.
      evaluate: `params -> {"eval_loss": ...}`; `None` keeps the last weights.
      checkpoint_folder: where to save and resume; `None` saves nothing.
      title: what the progress bar says.
      tell: is given the selection's report before anything is compiled.

    Returns:
      A `Tuned`.
    """
    if training.phases:
        from sftjax.recipes.in_phases import finetune_in_phases

        return finetune_in_phases(
            params, new, parts, stream, training,
            evaluate=evaluate, checkpoint_folder=checkpoint_folder, title=title, tell=tell,
        )  # fmt: skip
    num_steps = training.num_steps(stream.steps_per_epoch)
    plan = plan_of(params, new, parts, training, training.rules(), num_steps)
    method, chosen, anchor = plan.method, plan.selection, plan.anchor
    importance = None
    if method.importance is not None:
        assert anchor is not None
        tell(f"Fisher information of {count(anchor):,} scalars, over one epoch of rows")
        batches = (stream.at(step) for step in range(stream.steps_per_epoch))
        importance = method.importance(params, anchor, batches)
        if method.element_mask:
            method, importance = masked(method, importance), None
    report = describe(params, chosen, tx=method.tx, anchor=anchor)
    tell(str(report))
    state, fixed = init(
        method.start(params, anchor),
        chosen.trainable,
        method.tx,
        jax.random.key(training.seed),
        anchor=anchor,
        importance=importance,
        frozen_dtype=jnp.bfloat16 if training.bf16 else None,
    )
    state, fixed = replicate((state, fixed))
    step = compile_step(
        method.wrap(
            make_step(
                method.objective,
                method.tx,
                accumulate=training.gradient_accumulation_steps,
                view=method.view,
            )
        )
    )

    def score(state: TrainState, fixed: Fixed) -> dict[str, float]:
        assert evaluate is not None
        return evaluate(combine(method.seen(method.weights(state), fixed.anchor), fixed.frozen))

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
            checkpoints=checkpoints,
            log=log,
            weights=method.weights,
            **loop_options(training, every),
        )
    # Frozen leaves as they came: those in `fixed` may have been cast.
    best = combine(method.seen(run.best, anchor), partition(params, chosen.trainable)[1])
    best = method.finish(pretrained(params, new), best)
    history = with_rates(run.history, plan.schedule)
    return Tuned(best, run._replace(history=history), chosen, report, method.strength, num_steps)


class Plan(NamedTuple):
    """What a run is to do, before anything is compiled."""

    selection: Selection
    anchor: PyTree | None
    schedule: optax.Schedule
    method: Method


def plan_of(
    params: PyTree,
    new: Collection[str],
    parts: Parts,
    training: Training,
    rules: list[tuple[str, float]],
    num_steps: int,
    *,
    dose: float | None = None,
) -> Plan:
    """Choose what moves and build the method that holds it.

    Raises:
      ValueError: if a rule, the anchor's name or the dose does not fit the tree.
    """
    name, own = parse(training.anchor)
    chosen = select(params, rules, new=new)
    if training.layer_decay != 1.0:
        chosen = scaled(chosen, layerwise(params, training.layer_decay))
    trainable = partition(params, chosen.trainable)[0]
    peak = training.learning_rate
    if training.phases and all(path in new for path in flatten(trainable)):
        name, peak = "none", training.probe_learning_rate
    dose = next(given for given in (dose, own, training.dose) if given is not None)
    if training.strength is not None:
        if name not in STRONG:
            raise ValueError(
                f"--strength is the pull of {' and '.join(STRONG)}; anchor {name!r} takes a dose"
            )
        dose = 1.0 if training.strength else 0.0  # stands for "some" until the strength is used
    holds = METHODS[name].holds and (dose > 0 or not METHODS[name].dosed)
    anchor = anchor_of(params, chosen.trainable, new=new) if holds else None
    schedule = linear_schedule(peak, num_steps, warmup_ratio=training.warmup_ratio)
    setting = Setting(
        dose=dose,
        learning_rate=schedule,
        num_steps=num_steps,
        trainable=trainable,
        new=tuple(new),
        parts=parts,
        options={
            "weight_decay": training.weight_decay,
            "rates": chosen.rate,
            "max_grad_norm": training.max_grad_norm or None,
        },
        key=jax.random.key(training.seed),
        strength=training.strength,
        coupled=training.coupled,
    )
    return Plan(chosen, anchor, schedule, build_method(name, setting))


def rules_of(training: Training, new: Collection[str]) -> list[list[tuple[str, float]]]:
    """Return the rules of a run, or those of each of its phases.

    >>> rules_of(Training(phases=("lp", "ft")), ["head"])
    [[('new', 1.0)], [('last:2', 1.0)]]
    """
    if not training.phases:
        return [training.rules()]
    phases = phases_of_words(training.phases, training.rules(), 10**6)
    return [with_new(rules, new) for _, rules, _ in phases]


def loop_options(training: Training, every: int) -> dict[str, Any]:
    """Return the arguments of `fit` that a `Training` decides."""
    return {
        "eval_steps": every,
        "metric": training.metric_for_best_model,
        "greater_is_better": not training.metric_for_best_model.endswith(LESS_IS_BETTER),
        "patience": training.early_stopping_patience,
        "save_steps": training.save_steps or every,
        "log_steps": training.logging_steps,
    }


def with_rates(history: list[Record], schedule: optax.Schedule, begin: int = 0) -> list[Record]:
    """Return the history with the learning rate of each training record."""
    return [
        {**entry, "learning_rate": float(jnp.asarray(schedule(int(entry["step"]) - 1 - begin)))}
        if "loss" in entry
        else entry
        for entry in history
    ]


def told(training: Training, strength: float, leaves: int) -> str:
    """Return in words how a run was held to its pretrained weights, "" if it was not.

    >>> told(Training(), 0.5, 40)
    'L2-SP, decoupled, dose 1 (0.5), 40 leaves'
    """
    name, own = parse(training.anchor)
    dose = training.dose if own is None else own
    if name == "none" or (METHODS[name].dosed and not dose):
        return ""
    words = [METHODS[name].title]
    if name in ("l2-sp", "ewc"):
        words.append("coupled" if training.coupled else "decoupled")
    if training.strength is not None:
        words.append(f"strength {training.strength:g}")
    elif METHODS[name].dosed:
        words.append(f"dose {dose:g}" + (f" ({strength:.4g})" if strength else ""))
    return ", ".join([*words, *([f"{leaves} leaves"] if leaves else [])])


def pretrained(params: PyTree, new: Collection[str]) -> PyTree:
    """Return the params with holes where a leaf has no pretrained value.

    >>> pretrained({"trunk": 1, "head": 2}, ["head"])
    {'head': None, 'trunk': 1}
    """
    return map_with_path(lambda path, leaf: None if path in new else leaf, params)
