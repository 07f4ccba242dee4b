"""The loop of a sweep: the same steps for every run, metrics read one update late, a tidy table."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sftjax.core import Batch, Fixed, Metrics, TrainState
from sftjax.train.grid import name_of
from sftjax.train.pace import Pace
from sftjax.train.sweep import Settings, SweepStep
from sftjax.train.window import Event, computed


class SweepFit(NamedTuple):
    """What a sweep leaves behind."""

    states: TrainState
    """The last states, a leading axis R on every leaf."""
    history: list[dict[str, Any]]
    """`step` (updates done) and named (R,) arrays: means over the updates since the last record."""
    failed: dict[str, int]
    """Name of a run -> the first update (from 0) whose loss or gradient norm was not finite."""
    seconds: float


def fit_sweep(
    step: SweepStep,
    states: TrainState,
    fixed: Fixed,
    settings: Settings,
    batch_at: Callable[[int], Batch],
    num_steps: int,
    *,
    log_steps: int = 10,
    log: Callable[[dict[str, Any]], None] | None = None,
    watch: Callable[[Event], None] = lambda event: None,
) -> SweepFit:
    """Train every run to `num_steps` updates, from wherever their states stand.

    Args:
      step: a compiled step of a sweep.
      states: the first states; donated.
      fixed: what does not move, shared.
      settings: name -> (R,); they also name the runs.
      batch_at: `batch_at(i)` is the batch of update i, counted from 0.
      num_steps: updates in the whole run.
      log_steps: updates in a training record; 0 makes one record, at the end.
      log: called with each new record.
      watch: called with each event, as in `fit`: `start` (or `resume`) with the runs' names,
        `update`, `record` with its pace, and `fault` when a run has failed. What differs between
        runs is a list.

    Returns:
      A `SweepFit`. A run that fails stays in the states and the history as what it is, not finite;
      the others are not touched by it.

    Raises:
      FloatingPointError: if every run has failed.
      ValueError: if settings and states differ in the number of runs, or the states lie beyond
        the run.

    Warns:
      UserWarning: for each run that fails, with its name.
    """
    names = _names(settings)
    number = start = int(np.asarray(states.step)[0])
    if len(names) != len(states.step):
        raise ValueError(f"{len(names)} settings for {len(states.step)} states; give one a run")
    if start > num_steps:
        raise ValueError(
            f"the states stand at update {start}, the run ends at {num_steps}: give more updates"
        )
    if len(set(names)) < len(names):
        raise ValueError(
            f"two runs have the same settings ({max(names, key=names.count)}); give them a column "
            "that tells them apart, such as their seed"
        )
    failed: dict[str, int] = {}
    history: list[dict[str, Any]] = []
    rows: list[dict[str, np.ndarray]] = []
    pending: Metrics | None = None
    watch({"event": "resume" if start else "start", "step": start, "runs": names})

    def read(metrics: Metrics | None, update: int) -> None:
        if metrics is None:
            return
        rows.append({name: np.asarray(value) for name, value in metrics.items()})
        watch({"event": "update", "update": update, **_lists(rows[-1])})
        before = set(failed)
        _find_failed(rows[-1], update, names, failed)
        for name in [name for name in failed if name not in before]:
            what = "its loss or gradient is not finite"
            watch({"event": "fault", "update": update, "run": name, "what": what, "did": "failed"})

    def idle() -> bool:
        return pending is None or computed(pending)

    pace = Pace()
    while number < num_steps:
        batch = pace.fetch(batch_at, number, idle)
        states, metrics = step(states, fixed, settings, batch)
        read(pending, number - 1)  # one update late: the device is already at work on this one
        pending, number = metrics, number + 1
        if number == num_steps or (log_steps > 0 and number % log_steps == 0):
            read(pending, number - 1)
            history.append({"step": number, **_means(rows)})
            pending, rows = None, []
            pace.pause()
            watch({"event": "record", "step": number, **_lists(history[-1]), **pace.read()})
            pace.go_on()
            if log is not None:
                log(history[-1])
    jax.block_until_ready(states.trainable)
    pace.pause()
    pace.read()
    return SweepFit(states, history, failed, pace.seconds)


def tidy(runs: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row a run: the columns of its setting, then those of its results.

    Args:
      runs: the settings, as `grid` gives them.
      values: name -> (R,), such as a record of `SweepFit.history`; a scalar serves every run.

    Raises:
      ValueError: if a result has another number of runs, or a setting's name.

    >>> tidy([{"dose": 0.0, "seed": 0}, {"dose": 4.0, "seed": 0}], {"accuracy": [0.5, 0.75]})
    [{'dose': 0.0, 'seed': 0, 'accuracy': 0.5}, {'dose': 4.0, 'seed': 0, 'accuracy': 0.75}]
    """
    columns = {}
    for name, value in values.items():
        array = np.asarray(value)
        if runs and name in runs[0]:
            raise ValueError(f"{name} is a setting and a result; rename the result")
        if array.ndim and array.shape != (len(runs),):
            raise ValueError(f"{name} has shape {array.shape}; expected ({len(runs)},), one a run")
        columns[name] = np.broadcast_to(array, (len(runs),)).tolist()
    return [
        {**run, **{name: column[number] for name, column in columns.items()}}
        for number, run in enumerate(runs)
    ]


def _lists(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in row.items()}


def _names(settings: Settings) -> list[str]:
    columns = {name: np.asarray(values).tolist() for name, values in settings.items()}
    runs = zip(*columns.values(), strict=True)
    return [name_of(dict(zip(columns, run, strict=True))) for run in runs]


def _find_failed(
    row: Mapping[str, np.ndarray], update: int, names: list[str], failed: dict[str, int]
) -> None:
    finite = np.isfinite(row["loss"]) & np.isfinite(row.get("grad_norm", 0.0))
    for name, loss in zip(
        np.array(names, object)[~finite], row["loss"][~finite].tolist(), strict=True
    ):
        if name not in failed:
            failed[name] = update
            warnings.warn(
                f"run {name} failed: loss {loss:g} or its gradient is not finite at update "
                f"{update}. Its results are none; the other runs go on",
                stacklevel=4,
            )
    if not finite.any():
        raise FloatingPointError(
            f"every run has failed, the last at update {update}: {', '.join(failed)}. "
            f"Lower the learning rates, or look at the rows of batch {update}."
        )


def _means(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Weigh what is a mean over examples by how many those were, in every run."""
    means = {}
    for name in rows[0]:
        values = np.stack([row[name] for row in rows]).astype(np.float64)
        weights = np.ones_like(values)
        if name not in ("grad_norm", "weight") and "weight" in rows[0]:
            weights = np.stack([row["weight"] for row in rows]).astype(np.float64)
        total = weights.sum(axis=0)
        means[name] = (weights * values).sum(axis=0) / np.where(total > 0, total, 1.0)
    return means
