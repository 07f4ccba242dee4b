"""The loop, short enough to copy: dispatch a step, then read the metrics of the one before."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sftjax.core import Batch, Fixed, Metrics, PyTree, TrainState
from sftjax.train.checkpoint import Checkpoints, Saved
from sftjax.train.step import Step

Record = dict[str, float]
"""`step` and named numbers: training means since the last record, or `eval_*` values."""

Evaluate = Callable[[TrainState, Fixed], dict[str, float]]


class Fit(NamedTuple):
    """What a run leaves behind."""

    state: TrainState
    """The last state."""
    best: PyTree
    """What `weights` gives of the state of the best evaluation, or of the last one when nothing was
    evaluated: the trainable leaves."""
    best_step: int
    history: list[Record]
    seconds: float
    """Wall time spent in training steps, evaluation and saving left out."""


def fit(
    step: Step,
    state: TrainState,
    fixed: Fixed,
    batch_at: Callable[[int], Batch],
    num_steps: int,
    *,
    evaluate: Evaluate | None = None,
    eval_steps: int = 0,
    metric: str = "eval_loss",
    greater_is_better: bool = False,
    patience: int = 0,
    checkpoints: Checkpoints | None = None,
    save_steps: int = 0,
    log_steps: int = 10,
    log: Callable[[Record], None] | None = None,
    weights: Callable[[TrainState], PyTree] = lambda state: state.trainable,
) -> Fit:
    """Train to `num_steps` updates, from wherever the state (or its checkpoint) stands.

    The batch of an update is a function of its number, so a resumed run sees exactly the batches
    that the interrupted one had not seen.

    Args:
      step: a compiled step.
      state: the first state; donated.
      fixed: what does not move.
      batch_at: `batch_at(i)` is the batch of update i, counted from 0.
      num_steps: updates in the whole run.
      evaluate: `(state, fixed) -> {"eval_loss": ...}`; called every `eval_steps` updates and after
        the last.
      eval_steps: 0 evaluates only after the last update.
      metric: which of the evaluation's numbers decides the best state.
      greater_is_better: whether a larger one is better.
      patience: stop after this many evaluations in a row without a new best; 0 never stops early.
      checkpoints: where to save, and to resume from.
      save_steps: 0 saves only after the last update.
      log_steps: updates in a training record.
      log: called with each new record.
      weights: what to keep of the best state, of the trainable leaves' structure (an average of
        them, say).

    Returns:
      A `Fit`.

    Raises:
      FloatingPointError: if a loss or gradient norm is not finite; names the update.
      ValueError: if `evaluate` does not report `metric`, or the checkpoint lies beyond the run.
    """
    history: list[Record] = []
    best: PyTree | None = None
    if checkpoints is not None and (saved := checkpoints.latest(state)) is not None:
        state, best, history = saved.state, saved.best, list(saved.facts["history"])
    start = int(state.step)
    if start > num_steps:
        raise ValueError(f"the checkpoint stands at update {start}, the run ends at {num_steps}")

    def record(entry: Record) -> None:
        history.append(entry)
        if log is not None:
            log(entry)

    window = _Window(record)
    seconds = 0.0
    tick = time.perf_counter()
    stopped = _stalled(history, metric, greater_is_better, patience)
    number = start
    while number < num_steps and not stopped:
        state, metrics = step(state, fixed, batch_at(number))
        window.add(number, metrics)  # reads the metrics of the update before this one
        number += 1
        last = number == num_steps
        due_eval = evaluate is not None and (last or _due(number, eval_steps))
        due_save = checkpoints is not None and (last or _due(number, save_steps))
        if due_eval or due_save or _due(number, log_steps) or last:
            window.close()
        if due_eval or due_save:
            seconds += time.perf_counter() - tick
            if due_eval:
                assert evaluate is not None
                values = evaluate(state, fixed)
                if metric not in values:
                    raise ValueError(
                        f"evaluate reports {', '.join(values)}, but the best state is to be chosen "
                        f"by {metric!r}"
                    )
                if _improves(history, values[metric], metric, greater_is_better):
                    best = jax.tree.map(jnp.copy, weights(state))
                record({"step": number, **values})
                stopped = _stalled(history, metric, greater_is_better, patience)
            if checkpoints is not None and (due_save or stopped):
                checkpoints.save(Saved(state, best, {"history": list(history)}))
            tick = time.perf_counter()
    jax.block_until_ready(state.trainable)
    seconds += time.perf_counter() - tick
    scores = _scores(history, metric)
    chosen = (
        (max if greater_is_better else min)(scores, key=scores.__getitem__) if scores else number
    )
    return Fit(state, weights(state) if best is None else best, chosen, history, seconds)


class _Window:
    """Means of the metrics since the last record, read one update late."""

    def __init__(self, record: Callable[[Record], None]):
        self._record = record
        self._pending: tuple[int, Metrics] | None = None
        self._rows: list[dict[str, float]] = []

    def add(self, number: int, metrics: Metrics) -> None:
        self._read()
        self._pending = number, metrics

    def close(self) -> None:
        if self._pending is None and not self._rows:
            return
        step = self._pending[0] + 1 if self._pending else 0
        self._read()
        means = {name: self._mean(name) for name in self._rows[0]}
        self._rows = []
        self._record({"step": step, **means})

    def _mean(self, name: str) -> float:
        """Weigh what is a mean over examples by how many those were."""
        over_updates = name in ("grad_norm", "weight")
        weights = [1.0 if over_updates else row.get("weight", 1.0) for row in self._rows]
        total = math.fsum(w * row[name] for w, row in zip(weights, self._rows, strict=True))
        return total / (math.fsum(weights) or 1.0)

    def _read(self) -> None:
        if self._pending is None:
            return
        number, metrics = self._pending
        values = {name: float(value) for name, value in metrics.items()}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(values.get(name, 0.0)):
                raise FloatingPointError(
                    f"{name} is {values[name]} at update {number}. Lower the learning rate, clip "
                    f"the gradient (max_grad_norm), or look at the rows of batch_at({number})."
                )
        self._rows.append(values)
        self._pending = None


def _due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0


def _scores(history: list[Record], metric: str) -> dict[int, float]:
    return {int(entry["step"]): entry[metric] for entry in history if metric in entry}


def _improves(history: list[Record], value: float, metric: str, greater: bool) -> bool:
    before = list(_scores(history, metric).values())
    return not before or (value > max(before) if greater else value < min(before))


def _stalled(history: list[Record], metric: str, greater: bool, patience: int) -> bool:
    """Whether the last `patience` evaluations brought no new best."""
    values = list(_scores(history, metric).values())
    if not patience or len(values) <= patience:
        return False
    pick = max if greater else min
    return values.index(pick(values)) < len(values) - patience
