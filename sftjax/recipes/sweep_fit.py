"""The compiled step of a sweep of fine-tuning runs, and its fit."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from sftjax.anchor import adamw
from sftjax.core import PyTree, count, flatten, holes, map_with_path, partition
from sftjax.recipes.deciding import Decision
from sftjax.recipes.images_job import TuneImages
from sftjax.recipes.prepare import Classify, Prepared
from sftjax.recipes.progress import progress
from sftjax.recipes.report_to import reporting
from sftjax.recipes.streams import Stream
from sftjax.recipes.weighing import Weighing, weighed
from sftjax.recipes.worn import Worn
from sftjax.select import describe
from sftjax.train import (
    Step,
    SweepFit,
    compile_sweep_step,
    fit_sweep,
    identity_of,
    init,
    linear_schedule,
    make_step,
    make_sweep_step,
    name_of,
    replicate,
    spread,
    spread_runs,
    stack_settings,
    stack_states,
    sweep_memory,
    take_run,
)

UNWEIGHED = Weighing(0.0, 0.0, 0.0)
"""Of a run that holds every scalar alike, or none."""


def fit_runs(
    job: Classify | TuneImages,
    runs: list[dict[str, float]],
    plans: list[Decision],
    parts: Any,
    worn: Worn,
    ready: Prepared,
    stream: Stream,
    num_steps: int,
    tell: Callable[[str], None],
) -> SweepFit:
    """Train the runs of a sweep from the same trunk, on every device there is.

    Args:
      job: shared by the runs; its folder gets the log, with a list where the runs differ.
      runs: their settings.
      plans: what each of them would do alone.
      parts: of the model, or of what is above its kept prefix.
      worn: the params of all runs, with the adapters of one; each run draws what is new by its
        seed.
      ready: the model.
      stream: the batches that all runs share.
      num_steps: updates.
      tell: is given the selection and the memory before anything is compiled.

    Returns:
      A `SweepFit`, in which runs that failed go by their name in `runs`.
    """
    training, params = job.training, worn.params
    chosen = plans[0].selection
    anchor = next((plan.anchor for plan in plans if plan.anchor is not None), None)
    unit = linear_schedule(1.0, num_steps, warmup_ratio=training.warmup_ratio)
    weigher = next((plan.method for plan in plans if plan.method.importance is not None), None)
    importance, weighings = None, [UNWEIGHED] * len(plans)
    if weigher is not None:
        assert weigher.importance is not None
        assert anchor is not None
        tell(f"Fisher information of {count(anchor):,} scalars, over one epoch of rows, for all")
        batches = (stream.at(number) for number in range(stream.steps_per_epoch))
        importance = weigher.importance(params, anchor, batches)
        weighings = [
            UNWEIGHED if plan.method.weigh is None else plan.method.weigh(importance)
            for plan in plans
        ]
    settings = stack_settings(
        [
            {
                **_named(weighing),
                **run,
                "learning_rate": run.get("learning_rate", training.learning_rate),
                "strength": plan.method.strength,
                # A run without a pull is one without an anchor: its pretrained matrices decay.
                "free_decay": 0.0 if plan.anchor is not None else training.weight_decay,
            }
            for run, plan, weighing in zip(runs, plans, weighings, strict=True)
        ]
    )

    def tx_of(setting: Any) -> optax.GradientTransformation:
        def schedule(count: Any) -> Any:
            return setting["learning_rate"] * unit(count)

        held = {} if anchor is None else {"strength": setting["strength"]}
        tx = adamw(
            schedule,
            **held,
            coupled=training.coupled,
            weight_decay=training.weight_decay,
            rates=chosen.rate,
            max_grad_norm=training.max_grad_norm or None,
        )
        if anchor is None:
            return tx
        return optax.chain(tx, decay_anchored(setting["free_decay"], schedule, chosen.rate))

    objective = parts.objective(parts.logits)

    def step_of(setting: Any) -> Step:
        step = make_step(objective, tx_of(setting), accumulate=training.gradient_accumulation_steps)
        if importance is None:
            return step
        by = Weighing(*(setting[name] for name in _named(UNWEIGHED)))
        # One Fisher for all runs; each weighs it by numbers of its own.
        return lambda state, fixed, batch: step(
            state, fixed._replace(importance=weighed(fixed.importance, by)), batch
        )

    step = compile_sweep_step(make_sweep_step(step_of))
    first = tx_of(take_run(settings, 0))
    tell(str(describe(params, chosen, anchor=anchor)))
    tell(f"memory: {sweep_memory(partition(params, chosen.trainable)[0], first, len(runs))}")
    plain = ready.params

    @jax.jit
    def draw(plain: PyTree, key: Array) -> dict[str, Array]:
        fresh = flatten(ready.model.init(key)) if ready.new else {}
        drawn = map_with_path(lambda path, leaf: fresh[path] if path in ready.new else leaf, plain)
        return worn.drawn(drawn, ready.new, key)

    states, fixed = [], None
    for number, run in enumerate(runs):
        key = jax.random.key(int(run["seed"]))
        drawn = draw(plain, key) if worn.new else {}
        own = map_with_path(lambda path, leaf, drawn=drawn: drawn.get(path, leaf), params)
        state, fixed = init(
            own, chosen.trainable, tx_of(take_run(settings, number)), key,
            anchor=anchor, importance=importance,
            frozen_dtype=jnp.bfloat16 if training.bf16 else None,
        )  # fmt: skip
        states.append(state)
    assert fixed is not None
    stacked, at, devices = stack_states(states), stream.at, jax.device_count()
    if len(runs) % devices == 0:
        stacked, fixed, settings = spread_runs(stacked, fixed, settings)
        if devices > 1:
            tell(f"{len(runs)} runs over {devices} devices, {len(runs) // devices} on each")
    else:
        tell(
            f"{len(runs)} runs do not divide evenly over {devices} devices: every device holds all "
            "runs and computes its part of each batch"
        )
        stacked, fixed, settings = replicate((stacked, fixed, settings))
        at = spread(at)
    facts = identity_of(job.output_dir) or {}
    with (
        progress("sweep", num_steps) as log,
        reporting(job.output_dir, training.report_to, facts) as watch,
        warnings.catch_warnings(),
    ):
        # Said by the recipe itself, by the run's setting.
        warnings.filterwarnings("ignore", message="run .* failed")
        fitted = fit_sweep(
            step, stacked, fixed, settings, at, num_steps, log_steps=training.logging_steps,
            log=lambda record: log(
                {"step": record["step"], "loss": float(np.nanmean(record["loss"]))}
            ),
            watch=watch,
        )  # fmt: skip
    columns = {name: np.asarray(values).tolist() for name, values in settings.items()}
    inner = [
        name_of({name: column[n] for name, column in columns.items()}) for n in range(len(runs))
    ]
    failed = {
        name_of(run): fitted.failed[name]
        for run, name in zip(runs, inner, strict=True)
        if name in fitted.failed
    }
    return fitted._replace(failed=failed)


def _named(weighing: Weighing) -> dict[str, float]:
    return {f"importance_{name}": value for name, value in weighing._asdict().items()}


def decay_anchored(
    decay: Any, schedule: Callable[[Any], Any], rates: PyTree
) -> optax.GradientTransformationExtraArgs:
    """Decay anchored matrices to zero by a (traced) factor: plain AdamW where the pull is 0.

    Args:
      decay: 0 in runs that are held.
      schedule: of the learning rate.
      rates: of each leaf, as `adamw` takes them.
    """

    def update(
        updates: PyTree,
        count: Array,
        params: PyTree | None = None,
        *,
        anchor: PyTree | None = None,
        **others: object,
    ) -> tuple[PyTree, ArrayLike]:
        del others

        def add(update: Array | None, value: Any, origin: Array | None, rate: Any) -> Array | None:
            if update is None or origin is None or value.ndim < 2:
                return update
            return update - schedule(count) * rate * decay * value

        moved = jax.tree.map(add, updates, params, anchor, rates, is_leaf=holes)
        return moved, optax.safe_increment(count)

    return optax.GradientTransformationExtraArgs(lambda _: jnp.zeros((), jnp.int32), update)  # type: ignore[arg-type]
