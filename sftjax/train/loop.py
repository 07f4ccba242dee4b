"""The loop, short enough to copy: dispatch a step, then read the metrics of the one before."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sftjax.core import Batch, Fixed, PyTree, TrainState
from sftjax.train.checkpoint import Checkpoints, Saved
from sftjax.train.finite import Diagnose, OnNan
from sftjax.train.interrupt import Interrupted
from sftjax.train.layout import pinned
from sftjax.train.pace import Pace
from sftjax.train.step import Step
from sftjax.train.window import Event, NotFinite, Record, Window, rows_of

Evaluate = Callable[[TrainState, Fixed], dict[str, float]]

MOST_SKIPPED = 25
"""Updates skipped in a row after which a run stops: its weights, not its rows, are the trouble."""
MOST_ROLLBACKS = 8
"""Times that a run goes back to a checkpoint before it stops."""


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
    faults: tuple[Event, ...] = ()
    """Updates that were skipped or rolled back since the run's first one: `update`, `what`, `did`,
    and `rows` if batches say theirs."""
    waited: float = 0.0
    """Of the seconds, those in which the device waited for a batch."""


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
    on_nan: OnNan = "stop",
    diagnose: Diagnose | None = None,
    interrupted: Callable[[int], bool] | None = None,
    watch: Callable[[Event], None] = lambda event: None,
) -> Fit:
    """Train to `num_steps` updates, from wherever the state (or its checkpoint) stands.

    The batch of an update is a function of its number, so a resumed run sees exactly the batches
    that the interrupted one had not seen.

    Args:
      step: a compiled step, best of a `guard`, which holds back what is not finite.
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
      on_nan: when a loss or gradient norm is not finite: "stop" raises; "skip" goes on without the
        update (the step must be guarded so); "rollback" goes back to the last checkpoint and on
        with the batch after the bad one, so that those in between are not seen again.
      diagnose: says what is not finite in an update (`diagnosis`); for the error of "stop".
      interrupted: asked after each update whether to save and stop (`stop_on_signals`).
      watch: called with each event: `start` or `resume`, `update` (its own metrics), `record`,
        `evaluation`, `save`, `fault`, `interrupted`.

    Returns:
      A `Fit`.

    Raises:
      FloatingPointError: if a loss or gradient norm is not finite; names the update, its rows and
        the first bad leaf.
      Interrupted: if `interrupted` said so; the state is saved.
      ValueError: if `evaluate` does not report `metric`, the checkpoint lies beyond the run, or
        there is nowhere to roll back to.
    """
    run = Run([], [], [])
    state, best = pinned(state), None
    if on_nan == "rollback" and checkpoints is None:
        raise ValueError('on_nan="rollback" goes back to a checkpoint; give checkpoints=')
    if checkpoints is not None and (saved := checkpoints.latest(state)) is not None:
        state, best, run = saved.state, saved.best, Run.of(saved.facts)
    elif on_nan == "rollback" and checkpoints is not None:
        checkpoints.save(Saved(state, None, run.facts()))
    start = int(state.step)
    watch({"event": "resume" if start else "start", "step": start})
    if start > num_steps:
        raise ValueError(
            f"the checkpoint stands at update {start}, the run ends at {num_steps}: give more "
            "updates (num_steps, --max-steps), or start in another folder"
        )
    pace = Pace()

    def record(entry: Record) -> None:
        run.history.append(entry)
        pace.pause()
        watch({"event": "record", **entry, **pace.read()})
        pace.go_on()
        if log is not None:
            log(entry)

    def note(fault: NotFinite, did: str) -> None:
        event: Event = {"update": fault.update, "what": fault.what, "did": did}
        if rows := rows_of(batch_at(run.position(fault.update))):
            event["rows"] = rows
        run.faults.append(event)
        watch({"event": "fault", **event})

    def skipped(fault: NotFinite) -> None:
        note(fault, "skipped")
        last = [event["update"] for event in run.faults if event["did"] == "skipped"]
        if last[-MOST_SKIPPED:] == [*range(fault.update + 1 - MOST_SKIPPED, fault.update + 1)]:
            raise FloatingPointError(
                f"{fault.what} at update {fault.update}, and {MOST_SKIPPED} updates in a row were "
                "skipped. Lower the learning rate, or go back to an earlier model."
            )

    def save(best: PyTree | None) -> None:
        assert checkpoints is not None
        began = time.perf_counter()
        checkpoints.save(Saved(state, best, run.facts(window.rows)))
        blocked = time.perf_counter() - began
        watch({"event": "save", "step": number, "blocked": blocked, "failed": checkpoints.failed})

    window = Window(record, skipped, watch, run.window)
    stopped = stalled(run.history, metric, greater_is_better, patience)
    number = start
    while number < num_steps and not stopped:
        batch = pace.fetch(batch_at, run.position(number), window.idle)
        state, metrics = step(state, fixed, batch)
        fault = window.add(number, metrics)  # of the update before this one
        first = number == start  # told of when it is done, not when the next one has compiled
        if number == start + 1 and checkpoints is not None:
            checkpoints.make_ready()  # while the device works on the second update
        number += 1
        last = number == num_steps
        due_eval = evaluate is not None and (last or _due(number, eval_steps))
        due_save = checkpoints is not None and (last or _due(number, save_steps))
        asked = interrupted is not None and not last and interrupted(number)
        if fault is None and (due_eval or due_save or _due(number, log_steps) or last):
            fault = window.close()
        elif fault is None and (asked or first):
            fault = window.read()
        if fault is not None:
            if on_nan != "rollback" or checkpoints is None:
                raise FloatingPointError(_told(fault, state, fixed, batch_at, run, diagnose))
            state, best, number = _back(fault, state, checkpoints, run, note)
            window.clear()
            continue
        if due_eval or due_save or asked:
            pace.pause()
            if due_eval:
                assert evaluate is not None
                values = evaluate(state, fixed)
                if metric not in values:
                    raise ValueError(
                        f"evaluate reports {', '.join(values)}, but the best state is to be chosen "
                        f"by {metric!r}"
                    )
                if _improves(run.history, values[metric], metric, greater_is_better):
                    best = jax.tree.map(jnp.copy, weights(state))
                run.history.append({"step": number, **values})
                watch({"event": "evaluation", "step": number, **values})
                if log is not None:
                    log(run.history[-1])
                stopped = stalled(run.history, metric, greater_is_better, patience)
            if checkpoints is not None and (due_save or stopped or asked):
                save(best)
            if asked and not stopped:
                watch({"event": "interrupted", "step": number})
                raise Interrupted(number, saved=checkpoints is not None)
            pace.go_on()
    jax.block_until_ready(state.trainable)
    pace.pause()
    pace.read()
    scores = _scores(run.history, metric)
    pick = max if greater_is_better else min
    chosen = pick(scores, key=scores.__getitem__) if scores else number
    best = weights(state) if best is None else best
    return Fit(state, best, chosen, run.history, pace.seconds, tuple(run.faults), pace.waited)


class Run(NamedTuple):
    """What a checkpoint says beside the state."""

    history: list[Record]
    faults: list[Event]
    passed: list[list[int]]
    """[update, batches]: from this update on, so many batches more were passed over."""
    window: Sequence[dict[str, float]] = ()
    """Metrics of updates that are in no record yet."""

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "Run":
        return cls(*(list(facts.get(name, [])) for name in cls._fields))

    def facts(self, window: Sequence[dict[str, float]] = ()) -> dict[str, Any]:
        return {**self._asdict(), "history": list(self.history), "window": list(window)}

    def position(self, number: int) -> int:
        """Return which batch an update takes."""
        return number + sum(count for since, count in self.passed if since <= number)


def _told(
    fault: NotFinite,
    state: TrainState,
    fixed: Fixed,
    batch_at: Callable[[int], Batch],
    run: Run,
    diagnose: Diagnose | None,
) -> str:
    """Say what is wrong with an update; exactly, if a guarded step halted before it."""
    position = run.position(fault.update)
    batch = batch_at(position)
    said = f"{fault.what} at update {fault.update}."
    if diagnose is not None and int(state.step) < 0:
        said += f" In it, {diagnose(state, fixed, batch)}."
    if rows := rows_of(batch):
        said += f" Its rows, counted from 0 in the training data: {', '.join(map(str, rows))}."
    return (
        f"{said} Lower the learning rate, clip the gradient (--max-grad-norm, `max_grad_norm`), or "
        f"look at these rows (batch {position} of the run). To go on without such updates, say "
        "--on-nan skip or rollback."
    )


def _back(
    fault: NotFinite,
    state: TrainState,
    checkpoints: Checkpoints,
    run: Run,
    note: Callable[[NotFinite, str], None],
) -> tuple[TrainState, PyTree | None, int]:
    """Go back to the last checkpoint, and pass over the batches up to the bad one."""
    made = sum(event["did"].startswith("rolled back") for event in run.faults)
    saved = checkpoints.latest(state)
    if saved is None or made >= MOST_ROLLBACKS:
        reason = "no checkpoint can be read" if saved is None else f"{made} rollbacks did not help"
        raise FloatingPointError(
            f"{fault.what} at update {fault.update}, and {reason}. Lower the learning rate."
        )
    begin = int(saved.state.step)
    note(fault, f"rolled back to {begin}")
    run.passed.append([begin, fault.update + 1 - begin])
    run.history[:] = saved.facts["history"]
    return saved.state, saved.best, begin


def _due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0


def _scores(history: list[Record], metric: str) -> dict[int, float]:
    return {int(entry["step"]): entry[metric] for entry in history if metric in entry}


def _improves(history: list[Record], value: float, metric: str, greater: bool) -> bool:
    before = list(_scores(history, metric).values())
    return not before or (value > max(before) if greater else value < min(before))


def stalled(history: list[Record], metric: str, greater: bool, patience: int) -> bool:
    """Whether the last `patience` evaluations brought no new best."""
    values = list(_scores(history, metric).values())
    if not patience or len(values) <= patience:
        return False
    pick = max if greater else min
    return values.index(pick(values)) < len(values) - patience
